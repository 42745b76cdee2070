"""Variants of the names: prefixes, the original's first version, TorchDEQ."""

import numpy as np
import pytest

from mdeq_jax.convert import convert, export_state_dict
from tests.helpers.networks import assert_same, load_config, random_state_dict, refusal


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "module.model.", "_orig_mod."])
def test_prefixes(prefix, tiny):
    state_dict, config = tiny
    conversion = convert({prefix + name: w for name, w in state_dict.items()}, config)
    assert conversion.notes == [f"94 names begin with {prefix!r}"]
    assert_same(export_state_dict(conversion.variables, config), state_dict)


def test_prefixed_network_with_the_loss_beside_it(segmenter):
    state_dict, config = segmenter
    wrapped = {f"model.{name}": w for name, w in state_dict.items()}
    for name in ("loss.criterion.weight", "criterion.weight"):
        conversion = convert({**wrapped, name: np.ones(19, np.float32)}, config)
        assert f"{name}: the loss's class weights" in conversion.ignored
        assert_same(export_state_dict(conversion.variables, config), state_dict)


def test_two_networks_in_one_state_dict_are_refused(tiny):
    state_dict, config = tiny
    both = {**state_dict, "module.classifier.bias": np.zeros(10, np.float32)}
    assert "classifier.bias and module.classifier.bias are the same" in refusal(both, config)


FIRST_VERSION = {
    "first_version/cifar/cls_mdeq_TINY": "cifar10_tiny",
    "first_version/imagenet/cls_mdeq_SMALL": "imagenet_small",
    "first_version/cityscapes/seg_mdeq_SMALL": "cityscapes_small",
}


@pytest.mark.parametrize("experiment", FIRST_VERSION)
def test_first_version_holds_the_cell_four_times(experiment, shapes):
    config = load_config(FIRST_VERSION[experiment], post_gn_affine=True)
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    copies = ("fullstage_copy.", "deq.func.", "deq.func_copy.")
    own = {name: w for name, w in state_dict.items() if not name.startswith(copies)}
    assert_same(export_state_dict(conversion.variables, config), own)
    assert {line.split("*")[0] for line in conversion.ignored} == {*copies, ""}
    assert all("off by up to" in line for line in conversion.ignored if "copy of" in line)
    assert "written by the first version, with copies of the cell" in conversion.notes
    override = "--config.model.post_gn_affine=True"
    assert (override in conversion.recognised) == (config.name == "cifar10_tiny")


def test_first_version_copies_that_are_true(shapes):
    state_dict = random_state_dict(shapes["first_version/cifar/cls_mdeq_TINY"])
    for name in state_dict:
        for prefix in ("deq.func.", "fullstage_copy.", "deq.func_copy."):
            cell_name = "fullstage." + name.removeprefix(prefix)
            if name.startswith(prefix) and cell_name in state_dict:
                state_dict[name] = state_dict[cell_name]
            elif name.startswith(prefix):
                g, v = state_dict[f"{cell_name}_g"], state_dict[f"{cell_name}_v"]
                norm = np.sqrt((v.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
                state_dict[name] = (g * v / norm).astype(np.float32)
    config = load_config("cifar10_tiny", post_gn_affine=True)
    lines = [line for line in convert(state_dict, config).ignored if "copy of the cell" in line]
    assert len(lines) == 3 and all(line.endswith("equal to it") for line in lines)


def test_a_copy_of_nothing_is_unexpected(tiny):
    state_dict, config = tiny
    for name, shape in (("deq.func.extra", (3,)), ("fullstage_copy.branches.0.blocks.0.gn1", (2,))):
        assert name in refusal({**state_dict, name: np.zeros(shape, np.float32)}, config)


TORCHDEQ = {"torchdeq/cifar_large": "cifar10_large_phantom", "torchdeq/cifar_small": "cifar10_tiny"}


@pytest.mark.parametrize("experiment", TORCHDEQ)
def test_torchdeq_there_and_back(experiment, shapes):
    config = load_config(TORCHDEQ[experiment], post_gn_affine=True, fuse_weight_norm=True)
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    assert "--config.model.fuse_weight_norm=True" in conversion.recognised
    assert f"configs/{config.name}.py" in conversion.recognised
    assert_same(export_state_dict(conversion.variables, config), state_dict)
