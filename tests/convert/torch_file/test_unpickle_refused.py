"""Files that could run code, and damaged ones: each is refused with what is wrong."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from mdeq_jax.convert.torch_file.unpickle import load_torch_object
from tests.helpers.torch_files import (
    BOTH_FORMS,
    FLOATS,
    MAGIC,
    ORDERED_DICT,
    REBUILD,
    Call,
    Global,
    Raw,
    StorageId,
    dumps,
    legacy_bytes,
    refusal,
    tensor,
    write,
    write_zip,
)

# Files that could run code


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def evil_objects():
    import os

    system = Evil(os.system, ("touch ran",))
    return {
        "posix.system": {"w": system},
        "builtins.eval": [Evil(eval, ("1",))],
        "builtins.getattr": Evil(getattr, (1, "real")),
        "numpy.core.multiarray.scalar": {"best": np.float64(1)},
        "numpy.dtype": {"type": np.dtype("f4")},
        "builtins.complex": Evil(OrderedDict, ([("w", Evil(complex, (system,)))],)),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_globals_off_the_list_are_named(tmp_path, monkeypatch, form, protocol):
    monkeypatch.chdir(tmp_path)
    for name, saved in evil_objects().items():
        pickled = pickle.dumps(saved, protocol)
        if form == "zip":
            path = write_zip(tmp_path / "w.pkl", pickled)
        else:
            path = tmp_path / "w.pkl"
            path.write_bytes(pickled if form == "plain pickle" else legacy_bytes(pickled))
        message = refusal(path, load_torch_object)
        # Protocols below 3 and numpy 2 have other names for the same modules.
        name = name.replace("builtins", "").replace("numpy.core.multiarray", "")
        assert f"{name}`" in message and "refused: its pickle names the global" in message
        assert "Nothing was run" in message
    assert [p.name for p in tmp_path.iterdir()] == ["w.pkl"]


def test_numpy_numbers_beside_the_weights_are_explained(tmp_path):
    path = write_zip(tmp_path / "w.pkl", pickle.dumps({"best": np.float64(1)}, 2))
    assert "a best accuracy as a number" in refusal(path)


@pytest.mark.parametrize(
    ("module", "name", "advice"),
    [
        ("argparse", "Namespace", "A settings object (Namespace) was probably saved"),
        ("yacs.config", "CfgNode", "A settings object (CfgNode) was probably saved"),
        ("types", "SimpleNamespace", "A settings object"),
        ("models.mdeq", "MDEQ", "An object of the training program (MDEQ)"),
        ("torch.nn.modules.conv", "Conv2d", "A torch object was probably saved"),
        ("posix", "system", "unless you trust its source"),
    ],
)
def test_advice_suits_the_global(tmp_path, module, name, advice):
    message = refusal(write_zip(tmp_path / "w.pkl", dumps({"x": Global(module, name)})))
    assert advice in message
    assert ("save `model.state_dict()` alone" in message) == (module != "posix")


OTHER_REFUSALS = {
    "stack_global": (Raw(b"X\x05\0\0\0posixX\x06\0\0\0system\x93"), "`posix.system`"),
    "inst": (Raw(b"(X\x02\0\0\0idiposix\nsystem\n"), "`posix.system`"),
    "obj": (Raw(b"(cposix\nsystem\nX\x02\0\0\0ido"), "`posix.system`"),
    "newobj": (Raw(b"cposix\nsystem\n)\x81"), "`posix.system`"),
    "dotted": (
        Raw(b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93"),
        "OrderedDict.fromkeys`",
    ),
    "extension": (Raw(b"\x82\x01"), "extension code 1"),
    "nested reduce": (Call(Call(ORDERED_DICT, ()), ()), "calls a OrderedDict"),
    "calls a type": (Call(Global("torch", "FloatStorage"), (6,)), "calls a Float32DType"),
    "calls a string": (Call("posix.system", ("id",)), "calls a str"),
    "newobj of allowed": (Raw(b"ccollections\nOrderedDict\n)\x81"), "opcode NEWOBJ"),
    "state of a dict": (Raw(b"}}b"), "needs a OrderedDict"),
    "other state": (Raw(b"ccollections\nOrderedDict\n)R]b"), "are a list"),
    "bare storage": (StorageId(tensor((6,)).args[0].fields), "bare Storage"),
    "bare type": (Global("torch", "FloatStorage"), "bare Float32DType"),
    "bare function": (REBUILD, "bare AllowedCall"),
    "arguments": (Call(REBUILD, (1,)), "6 to 7 arguments"),
    "module": (Raw(b"X\x06\0\0\0modulecmodels.mdeq\nMDEQ\n"), "`models.mdeq.MDEQ`"),
    "torch model": (Global("torch.nn.modules.conv", "Conv2d"), "save `model.state_dict()` alone"),
}


@BOTH_FORMS
@pytest.mark.parametrize("case", OTHER_REFUSALS)
def test_other_ways_to_code_are_refused(tmp_path, case, zipped):
    saved, expected = OTHER_REFUSALS[case]
    storages = {"0": FLOATS} if "storage" in case else {}
    message = refusal(write(tmp_path, {"x": saved}, zipped, storages), load_torch_object)
    assert expected in message


# Damaged files

BAD_TENSORS = {
    "absurd shape": (tensor((2**40, 2**40), numel=6), "its storage has 6"),
    "absurd empty shape": (tensor((0, 2**62, 2**62), (0, 0, 0), numel=6), "absurd"),
    "outside": (tensor((6,), offset=1, numel=6), "needs 7 elements and its storage has 6"),
    "long stride": (tensor((2,), (6,), numel=6), "needs 7 elements"),
    "negative size": (tensor((-1,), (1,), numel=6), "integers from 0"),
    "negative stride": (tensor((2,), (-1,), 3, numel=6), "integers from 0"),
    "negative offset": (tensor((2,), (1,), -1, numel=6), "an offset from 0"),
    "strides missing": (tensor((2, 3), (1,), numel=6), "as many strides as sizes"),
    "too many axes": (tensor((1,) * 33, (1,) * 33, numel=6), "at most 32"),
    "size of floats": (tensor((2.0,), (1,), numel=6), "integers from 0"),
    "expanded": (tensor((2**40,), (0,), numel=6), "repeats 6 elements to 1099511627776"),
    "huge storage": (tensor((2**60,)), "more than the whole file has"),
    "negative storage": (tensor((6,), numel=-6), "an integer from 0"),
    "unknown storage": (tensor((6,), kind="QInt8Storage"), "`torch.QInt8Storage`"),
    "view outside": (tensor((3,), numel=6, view=(("1", 4, 3),)), "exceeds its storage of 6"),
    "view of nothing": (tensor((3,), numel=6, view=("1",)), "no view"),
    "storage id": (StorageId(("storage", 1)), "is not a tuple"),
    "id of a string": (StorageId(("module", 1, "0", "cpu", 6)), "no storage of a known type"),
    "no storage": (Call(REBUILD, (1, 0, (6,), (1,), False, None)), "no storage"),
    "metadata": (
        Call(REBUILD, (*tensor((6,)).args, {"conj": True})),
        "carries the metadata",
    ),
}


@BOTH_FORMS
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(tmp_path, case, zipped):
    saved, expected = BAD_TENSORS[case]
    assert expected in refusal(write(tmp_path, {"w": saved}, zipped))


@BOTH_FORMS
def test_storages_that_do_not_fit_their_tensors(tmp_path, zipped):
    storages = {"0": FLOATS[:5]}
    message = refusal(write(tmp_path, {"w": tensor((6,))}, zipped, storages))
    assert "require" in message and "6" in message
    message = refusal(write(tmp_path, {"w": tensor((6,), key="1")}, zipped, storages))
    assert "missing" in message
    saved = {"a": tensor((6,)), "b": tensor((3,), kind="LongStorage")}
    assert "named twice" in refusal(write(tmp_path, saved, zipped))


@BOTH_FORMS
def test_booleans_that_are_not(tmp_path, zipped):
    saved = {"mask": tensor((2,), kind="BoolStorage")}
    storages = {"0": np.array([1, 2], np.uint8)}
    assert "not 0 or 1" in refusal(write(tmp_path, saved, zipped, storages))


@BOTH_FORMS
def test_every_truncation_is_refused(tmp_path, zipped):
    path = write(tmp_path, {"w": tensor((6,))}, zipped)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content[: len(content) - 4])
    assert "cut short" in refusal(path)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "The file is empty"),
        (b"Hello, these are my weights.\n", "It is text"),
        (b"<!DOCTYPE html>\n<html>404: Not Found</html>", "It is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "git lfs pull"),
        (bytes(range(256)), "not a file that torch.save wrote"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a file that torch.save wrote"),
        (pickle.dumps({"w": 1}), "not a file that torch.save wrote"),
        (MAGIC + pickle.dumps(1002), "protocol version of the file is 1002"),
        (legacy_bytes(dumps({"w": 1})) + b"more", "4 bytes follow the last storage"),
        (legacy_bytes(dumps({"w": 1}), keys=7), "not a list of strings"),
        (legacy_bytes(dumps({"w": 1}), keys=["5"]), "unused ['5']"),
    ],
)
def test_files_that_are_not_weights(tmp_path, content, expected):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_paths_that_are_no_files(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing.pkl")
    assert "a folder" in refusal(tmp_path)


def test_zips_that_are_not_weights(tmp_path):
    pickled, path = dumps({"w": 1}), tmp_path / "w.pkl"
    write_zip(path, pickled, extra=[("other/data.pkl", b"")])
    assert "holds 2 files FOLDER/data.pkl" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(path, pickled, {"0": b""}, extra=[("archive/data/0", b"")])
    assert "holds archive/data/0 twice" in refusal(path)
    write_zip(path, pickled, extra=[("archive/constants.pkl", b"")])
    assert "TorchScript" in refusal(path)
    write_zip(path, pickled + b"more")
    assert "4 bytes after its end" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    assert "holds 0 files FOLDER/data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "big")
    assert "byte order of the file is b'big'" in refusal(path)


def test_flipped_byte_in_a_zipped_storage(tmp_path):
    path = write(tmp_path, {"w": tensor((6,))}, zipped=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<f", 5), struct.pack("<f", 6)))
    assert "Bad CRC-32" in refusal(path)
