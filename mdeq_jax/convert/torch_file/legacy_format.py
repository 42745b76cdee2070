"""The older form of a `torch.save` file (before PyTorch 1.6): a stream of pickles.

It holds, in order: a magic number, the protocol version, the properties of the machine that wrote
it, the saved object and the list of storage keys. For each key, the number of elements (int64) and
the raw bytes follow. Everything is little-endian on every machine.
"""

import io
import reprlib
import struct
from typing import Any

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.allowed import UnsafePickleError
from mdeq_jax.convert.torch_file.pickle_opcodes import MAX_PICKLE_BYTES, read_pickle
from mdeq_jax.convert.torch_file.torch_objects import ALLOWED_GLOBALS, StorageTable

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_legacy(file: io.FileIO, file_size: int) -> object:
    """Reads a file of the older form.

    Args:
        file: open for reading, at its beginning.
        file_size: in bytes.

    Returns:
        The saved object, with numpy arrays for tensors.

    Raises:
        WeightsFileError: the file is refused, or `torch.save` did not write it.
        Exception: whatever `pickletools` raises on a damaged file.
    """
    reader = io.BufferedReader(file)
    _check_magic_number(reader)
    version = _next_pickle(reader)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise WeightsFileError(
            f"the protocol version of the file is {reprlib.repr(version)}; only "
            f"{PROTOCOL_VERSION} is read"
        )
    _next_pickle(reader)  # properties of the machine, which torch does not use either
    table = StorageTable(file_size)
    saved = _next_pickle(reader, table.persistent_load)
    keys = _next_pickle(reader)
    for key in _checked_keys(keys, table):
        _fill(reader, key, table.storages[key])
    extra = file_size - reader.tell()
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
    except ValueError:  # any other error of the pickle reader or of `pickletools`
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


def _checked_keys(keys: Any, table: StorageTable) -> list[str]:
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise WeightsFileError("damaged file: the list of storage keys is not a list of strings")
    if len(keys) != len(table.storages) or set(keys) != set(table.storages):
        missing = sorted(set(table.storages) - set(keys))
        unused = sorted(set(keys) - set(table.storages))
        raise WeightsFileError(
            f"the storages in the file are not those its tensors use: missing "
            f"{reprlib.repr(missing)}, unused {reprlib.repr(unused)}, {len(keys)} listed"
        )
    return keys


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
