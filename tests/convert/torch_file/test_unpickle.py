import pickle
from collections import Counter, OrderedDict

import chex
import ml_dtypes
import numpy as np
import pytest

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.unpickle import (
    load_torch_file,
    load_torch_object,
    read_state_dict,
)
from tests.helpers.torch_files import (
    BOTH_FORMS,
    FLOATS,
    ORDERED_DICT,
    REBUILD,
    Call,
    Global,
    StorageId,
    dumps,
    refusal,
    tensor,
    write,
    write_zip,
)

# What torch writes


def assert_same(ours, theirs):
    """The same tree, with numpy arrays for tensors."""
    torch = pytest.importorskip("torch")
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        assert ours.shape == tuple(theirs.shape)
        if theirs.dtype == torch.bfloat16:
            assert ours.dtype == ml_dtypes.bfloat16
            ours, theirs = ours.astype(np.float32), theirs.float()
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_array_equal(ours, theirs.numpy())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def test_reference_files_equal_torch_load(reference_dir):
    torch = pytest.importorskip("torch")
    paths = sorted(reference_dir.glob("*.pkl"))
    assert len(paths) >= 5
    for path in paths:
        assert_same(load_torch_file(path), torch.load(path, weights_only=True))


def test_both_forms_of_the_reference_file_hold_the_same(reference_dir):
    new = load_torch_file(reference_dir / "mdeq_tiny_cifar10.pkl")
    old = load_torch_file(reference_dir / "mdeq_tiny_cifar10_legacy.pkl")
    assert list(new) == list(old) and len(new) == 94
    chex.assert_trees_all_equal(new, old, strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@BOTH_FORMS
def test_every_type_and_layout_that_torch_saves(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(60.0).reshape(3, 4, 5)
    saved = OrderedDict(
        transposed=base.permute(2, 0, 1),
        sliced=base[1:, ::2, 1:4],
        shared=base,
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        expanded=torch.ones(1, 3).expand(4, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        row=base[2, 3],
    )
    names = "half bfloat16 float32 float64 int64 int32 int16 int8 uint8 bool".split()
    for name in names:
        saved[name] = (torch.arange(-3, 4) * 1.25).to(getattr(torch, name))
    path = tmp_path / "weights.pkl"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    loaded = load_torch_file(path)
    assert_same(loaded, saved)
    assert np.shares_memory(loaded["transposed"], loaded["sliced"])
    assert loaded["shared"].flags.writeable and not loaded["expanded"].flags.writeable


@BOTH_FORMS
def test_training_checkpoint(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "model": "cls_mdeq",
        "state_dict": model.state_dict(),
        "perf": torch.tensor(77.5),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "shape": model[0].weight.shape,
        "others": [None, True, 1.5, 2**70, b"bytes", {1, 2}],
    }
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert_same(load_torch_file(path), model.state_dict())
    loaded = load_torch_object(path)
    assert loaded["lr_scheduler"].pop("milestones") == Counter([3, 5])
    del saved["lr_scheduler"]["milestones"]
    saved["shape"] = tuple(saved["shape"])
    assert_same(loaded, saved)


# What is read, without torch at hand


@BOTH_FORMS
def test_views_of_one_storage(tmp_path, zipped):
    saved = {
        "matrix": tensor((2, 3)),
        "transposed": tensor((3, 2), (1, 3)),
        "scalar": tensor((), (), 4, numel=6),
        "column": tensor((2,), (3,), 1, numel=6),
        "one_long_axis": tensor((1, 6), (2**62, 1)),
    }
    loaded = load_torch_file(write(tmp_path, saved, zipped))
    matrix = FLOATS.reshape(2, 3)
    np.testing.assert_array_equal(loaded["matrix"], matrix)
    np.testing.assert_array_equal(loaded["transposed"], matrix.T)
    np.testing.assert_array_equal(loaded["column"], matrix[:, 1])
    np.testing.assert_array_equal(loaded["one_long_axis"], FLOATS[None])
    assert loaded["scalar"].shape == () and loaded["scalar"] == 4.0


def test_older_rebuild_functions_and_view_metadata(tmp_path):
    storage = ("storage", Global("torch", "FloatStorage"), "0", "cuda:0", 6)
    old = Call(Global("torch._utils", "_rebuild_tensor"), (StorageId(storage), 1, (2,), (1,)))
    in_view = (StorageId((*storage, ("7", 2, 3))), 0, (3,), (1,), False, None)
    saved = {
        "old": Call(Global("torch.nn.parameter", "Parameter"), (old, True)),
        "view": Call(REBUILD, in_view),
        "none": Call(REBUILD, (StorageId((*storage, None)), 0, (6,), (1,), False, None)),
    }
    loaded = load_torch_file(write(tmp_path, saved, zipped=False))
    np.testing.assert_array_equal(loaded["old"], [1, 2])
    np.testing.assert_array_equal(loaded["view"], [2, 3, 4])
    np.testing.assert_array_equal(loaded["none"], FLOATS)


def test_metadata_of_a_state_dict_is_dropped(tmp_path):
    state = {"_metadata": Call(ORDERED_DICT, ())}
    saved = Call(ORDERED_DICT, ([["w", tensor((6,))]],), state)
    loaded = load_torch_file(write(tmp_path, saved, zipped=True))
    assert list(loaded) == ["w"] and type(loaded) is dict


@pytest.mark.parametrize("protocol", range(6))
def test_plain_objects_in_every_protocol(tmp_path, protocol):
    saved = {"epoch": 3, "big": 2**70, "list": [1.5, None, True, "é", b"x"], "tuple": (1, (2,))}
    path = write_zip(tmp_path / "weights.pkl", pickle.dumps(saved, protocol))
    assert load_torch_object(path) == saved


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_nested_state_dict(tmp_path, key):
    path = write(tmp_path, {"epoch": 3, key: {"w": tensor((6,))}}, zipped=True)
    assert list(load_torch_file(path)) == ["w"]


# Which object is the state dict


def test_no_state_dict_lists_the_top_level(tmp_path):
    path = write_zip(tmp_path / "w.pkl", dumps({"epoch": 3, "model": "mdeq", "state_dict": {}}))
    assert "'epoch', 'model', 'state_dict'" in refusal(path)
    assert load_torch_object(path) == {"epoch": 3, "model": "mdeq", "state_dict": {}}
    assert "holds a list" in refusal(write_zip(tmp_path / "l.pkl", dumps([1])))


def test_two_state_dicts(tmp_path):
    saved = {"state_dict": {"w": tensor((6,))}, "model": {"v": tensor((6,))}}
    path = write(tmp_path, saved, zipped=True)
    assert "under each of state_dict, model: choose one with --key=" in refusal(path)
    assert list(load_torch_file(path, key="model")) == ["v"]


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_other_tensors_of_a_file_are_named_and_chosen(tmp_path, key):
    average = {"module": {"v": tensor((6,)), "step": 3}}
    saved = {key: {"w": tensor((6,))}, "model_ema": {"u": tensor((6,))}, "ema": average}
    path = write(tmp_path, saved, zipped=True)
    found = read_state_dict(path)
    assert list(found.tensors) == ["w"]
    assert found.notes == [
        f"took the tensors under {key}; the file holds others under model_ema (1), "
        "ema.module (1): --key chooses"
    ]
    assert list(load_torch_file(path, key="model_ema")) == ["u"]
    with pytest.raises(WeightsFileError, match=r"under the key 'x'. .*--key=ema\.module"):
        load_torch_file(path, key="x")
    with pytest.raises(WeightsFileError, match=r"not named tensors: 'step' \(int\)"):
        load_torch_file(path, key="ema.module")


def test_tensors_under_an_unknown_key_are_found(tmp_path):
    path = write(tmp_path, {"net": {"w": tensor((6,))}}, zipped=True)
    assert "choose one with --key=net" in refusal(path)
    assert read_state_dict(path, "net").notes == []


def test_entries_that_are_not_tensors_are_all_listed(tmp_path):
    message = refusal(write(tmp_path, {"w": tensor((6,)), "lr": 0.1, 7: "x"}, zipped=True))
    assert "'lr' (float), 7 (str)" in message
