"""The older form of a `torch.save` file (before PyTorch 1.6): a stream of pickles.

In order: a magic number, the protocol version, the facts of the machine that wrote it, the saved
object, the list of storage keys; then, for each key, the number of elements (int64) and the raw
bytes. Everything is little-endian whatever the machine.
"""

import io
import reprlib
import struct

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.pickle_opcodes import (
    MAX_PICKLE_BYTES,
    UnsafePickleError,
    read_pickle,
)
from mdeq_jax.convert.torch_file.torch_objects import ALLOWED_GLOBALS, StorageTable

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_legacy(file: io.FileIO, file_size: int) -> object:
    """Reads a file of the older form, open at its beginning.

    Returns:
        The saved object, with numpy arrays for tensors.

    Raises:
        WeightsFileError: the file is refused or is not what `torch.save` writes.
        Exception: whatever `pickletools` raises on a damaged file.
    """
    file = io.BufferedReader(file)
    _check_magic_number(file)
    version = _next_pickle(file)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise WeightsFileError(
            f"the protocol version of the file is {reprlib.repr(version)}; only "
            f"{PROTOCOL_VERSION} is read"
        )
    _next_pickle(file)  # facts of the machine, which torch does not use either
    table = StorageTable(file_size)
    saved = _next_pickle(file, table.persistent_load)
    keys = _next_pickle(file)
    _check_keys(keys, table)
    for key in keys:
        _fill(file, key, table.storages[key])
    extra = file_size - file.tell()
    if extra:
        raise WeightsFileError(f"{extra} bytes follow the last storage: the file is damaged")
    table.check_filled()
    return saved


def _check_magic_number(file):
    head = file.read(80)
    file.seek(0)
    try:
        magic_number = _next_pickle(file)
    except UnsafePickleError:
        raise
    except ValueError:  # any other error of ours, or of `pickletools`
        magic_number = None
    if type(magic_number) is not int or magic_number != MAGIC_NUMBER:
        raise WeightsFileError(
            f"not a file that torch.save wrote: it begins with {head[:24]!r}, neither a zip nor "
            f"the magic number of the older form.{_guess(head)}"
        )


def _guess(head):
    if not head:
        return " The file is empty."
    if head.startswith(b"version https://git-lfs"):
        return " It is a Git LFS pointer: run `git lfs pull` to get the weights."
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return " It is text: perhaps the web page or error message of a download that failed."
    return ""


def _next_pickle(file, persistent_load=None):
    start = file.tell()
    data = file.read(MAX_PICKLE_BYTES)
    value, length = read_pickle(data, ALLOWED_GLOBALS, persistent_load)
    file.seek(start + length)
    return value


def _check_keys(keys, table):
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise WeightsFileError("damaged file: the list of storage keys is not a list of strings")
    if len(keys) != len(table.storages) or set(keys) != set(table.storages):
        missing = sorted(set(table.storages) - set(keys))
        unused = sorted(set(keys) - set(table.storages))
        raise WeightsFileError(
            f"the storages in the file are not those its tensors use: missing "
            f"{reprlib.repr(missing)}, unused {reprlib.repr(unused)}, {len(keys)} listed"
        )


def _fill(file, key, storage):
    stated = file.read(8)
    if len(stated) < 8:
        raise WeightsFileError(f"the file is cut short before storage {reprlib.repr(key)}")
    (numel,) = struct.unpack("<q", stated)
    if numel != storage.numel:
        raise WeightsFileError(
            f"storage {reprlib.repr(key)} has {numel} elements; its tensors require {storage.numel}"
        )
    read = file.readinto(memoryview(storage.raw))
    if read != storage.raw.nbytes:
        raise WeightsFileError(
            f"the file is cut short in storage {reprlib.repr(key)}: {read} of "
            f"{storage.raw.nbytes} bytes are there"
        )
