"""The zip form of a `torch.save` file (PyTorch 1.6 and later).

One folder, named after the file or `archive`, holds `data.pkl` (the pickled object), `data/KEY`
(the raw bytes of each storage), `byteorder`, `version` and others. Members are not compressed.
"""

import io
import zipfile

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.pickle_opcodes import MAX_PICKLE_BYTES, read_pickle
from mdeq_jax.convert.torch_file.torch_objects import ALLOWED_GLOBALS, StorageTable

SIGNATURE = b"PK\x03\x04"
_CHUNK_BYTES = 2**20
# The list of members takes some 80 bytes for each of the few thousand tensors of a network.
_MAX_DIRECTORY_BYTES = 4 * 2**20


class _BoundedReads(io.BufferedReader):
    """A file that refuses a large read.

    `zipfile` reads the list of members in one piece, of the length that the file declares. It makes
    an object of half a kilobyte for each member, so the list must be bounded before parsing.
    """

    def read(self, size=-1, /):
        if size is None or size < 0:  # the end-of-archive record, 64 KB at most
            size = _MAX_DIRECTORY_BYTES
        if size > _MAX_DIRECTORY_BYTES:
            raise WeightsFileError(
                f"the zip's list of members takes more than {_MAX_DIRECTORY_BYTES:,} bytes, far "
                "more than a network's tensors need"
            )
        return super().read(size)


def read_zip(file: io.FileIO, file_size: int) -> object:
    """Reads a file of the zip form.

    Args:
        file: open for reading.
        file_size: in bytes.

    Returns:
        The saved object, with numpy arrays for tensors.

    Raises:
        WeightsFileError: the file is refused, or `torch.save` did not write it.
        Exception: whatever `zipfile` or `pickletools` raise on a damaged file.
    """
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        members = _checked_members(archive, file_size)
        root = _root_folder(members)
        _check_byte_order(archive, members.get(f"{root}/byteorder"))
        table = StorageTable(file_size)
        data = _read_member(archive, members[f"{root}/data.pkl"])
        saved, end = read_pickle(data, ALLOWED_GLOBALS, table.persistent_load)
        if end != len(data):
            raise WeightsFileError(f"data.pkl has {len(data) - end} bytes after its end: damaged")
        for key, storage in table.storages.items():
            member = members.get(f"{root}/data/{key}")
            if member is None:
                raise WeightsFileError(f"storage data/{key:.80} is missing from the zip")
            if member.file_size != storage.raw.nbytes:
                raise WeightsFileError(
                    f"storage data/{key:.80} has {member.file_size} bytes; its tensors require "
                    f"{storage.numel} elements of {storage.dtype}, {storage.raw.nbytes} bytes"
                )
            _read_into(archive, member, storage.raw.data)
        table.check_filled()
    return saved


def _checked_members(archive, file_size):
    members = {}
    for member in archive.infolist():
        if member.filename in members:
            raise WeightsFileError(f"the zip holds {member.filename:.80} twice")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise WeightsFileError(
                f"{member.filename:.80} in the zip is compressed ({member.compress_size} bytes to "
                f"{member.file_size}); torch.save stores without compression. Unpack the file and "
                "zip it again with `zip -0`, or save it again with torch."
            )
        members[member.filename] = member
    total = sum(member.file_size for member in members.values())
    if total > file_size:
        raise WeightsFileError(
            f"the zip declares {total:,} bytes of content in a file of {file_size:,}: damaged, or "
            "made to exhaust memory"
        )
    return members


def _root_folder(members):
    roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise WeightsFileError(
            f"the zip holds {len(roots)} files FOLDER/data.pkl, not one: it is not a torch.save "
            "file"
        )
    if f"{roots[0]}/constants.pkl" in members:
        raise WeightsFileError(
            "this is a TorchScript program (torch.jit.save), not a file of weights. Load it with "
            "torch and save `model.state_dict()`."
        )
    return roots[0]


def _check_byte_order(archive, member):
    order = b"little" if member is None else _read_member(archive, member)
    if order != b"little":
        raise WeightsFileError(
            f"the byte order of the file is {order[:20]!r}; only b'little' is read. Save it again "
            "on a little-endian machine."
        )


def _read_member(archive, member):
    if member.file_size > MAX_PICKLE_BYTES:
        raise WeightsFileError(
            f"{member.filename:.80} has {member.file_size:,} bytes; at most {MAX_PICKLE_BYTES:,} "
            "are read"
        )
    content = bytearray(member.file_size)
    _read_into(archive, member, memoryview(content))
    return bytes(content)


def _read_into(archive, member, out):
    with archive.open(member) as stream:
        filled = 0
        while filled < len(out):
            chunk = stream.read(min(_CHUNK_BYTES, len(out) - filled))
            if not chunk:
                raise WeightsFileError(f"{member.filename:.80} in the zip is cut short")
            out[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
