"""Writes both forms of a `torch.save` file by hand, honest or hostile, without torch."""

import struct
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.unpickle import load_torch_file

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: object
    args: object
    state: object = None


class StorageId(NamedTuple):
    fields: tuple


class Raw(NamedTuple):
    """Opcodes, as they are."""

    opcodes: bytes


def opcodes(value) -> bytes:
    """The opcodes of pickle protocol 2 that leave `value` on the stack."""
    match value:
        case Raw(code):
            return code
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args, state):
            build = b"" if state is None else opcodes(state) + b"b"
            return opcodes(function) + opcodes(args) + b"R" + build
        case StorageId(fields):
            return opcodes(fields) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            items = b"".join(opcodes(k) + opcodes(v) for k, v in value.items())
            return b"}(" + items + b"u"
    raise TypeError(value)


def dumps(value) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(size, stride=None, offset=0, *, key="0", numel=None, kind="FloatStorage", view=()):
    """A tensor as torch pickles it; contiguous unless a stride is given."""
    if stride is None:
        stride = [1]
        for n in size[:0:-1]:
            stride.insert(0, stride[0] * n)
        stride = tuple(stride[: len(size)])
    if numel is None:
        numel = 1
        for n in size:
            numel *= n
    storage = StorageId(("storage", Global("torch", kind), key, "cpu", numel, *view))
    return Call(REBUILD, (storage, offset, size, stride, False, Call(ORDERED_DICT, ())))


def write_zip(path, pickled, storages=None, compression=zipfile.ZIP_STORED, extra=()):
    """`storages`: {key: bytes}; `extra`: (member name, bytes) after the others."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickled, compression)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for key, content in (storages or {}).items():
            member = zipfile.ZipInfo(f"archive/data/{key}")
            archive.writestr(member, bytes(content), compression)
        for name, content in extra:
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def legacy_bytes(pickled, storages=None, keys=None):
    """`storages`: {key: (number of elements, bytes)}; `keys`: the list, if not those."""
    storages = storages or {}
    content = [MAGIC, PROTOCOL, dumps({"little_endian": True}), pickled]
    content.append(dumps(list(storages) if keys is None else keys))
    for numel, raw in storages.values():
        content += [struct.pack("<q", numel), raw]
    return b"".join(content)


def write_legacy(path, pickled, storages=None, keys=None):
    path.write_bytes(legacy_bytes(pickled, storages, keys))
    return path


FLOATS = np.arange(6, dtype="<f4")
BOTH_FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def write(folder, saved, zipped, storages=None):
    """`storages`: {key: array}."""
    storages = {"0": FLOATS} if storages is None else storages
    path = folder / "weights.pkl"
    if zipped:
        return write_zip(path, dumps(saved), {k: v.tobytes() for k, v in storages.items()})
    return write_legacy(path, dumps(saved), {k: (v.size, v.tobytes()) for k, v in storages.items()})


def refusal(path, load=load_torch_file):
    with pytest.raises(WeightsFileError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 1000
    return message
