"""RepMLP and its blocks against the original's arrays, in training, evaluation and merged form."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.convert.repmlp.names import block_entries, repmlp_entries
from mdeq_jax.models.repmlp.blocks import BottleneckBlock, LightBlock
from mdeq_jax.models.repmlp.merge import merge_conv_norm, merge_repmlp
from tests.helpers.repmlp import (
    assert_close,
    configs_of,
    input_by_rule,
    module_settings,
    nhwc,
    spec_of,
    torch_arrays,
    train_pass,
    variables_of,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = 1e-10
MODULES = ("module_global", "module_local", "module_fc_only", "light_block", "bottleneck_block")
TRAINED = tuple(
    f"train_{name}" for name in ("module_global", "module_local", "light_block", "bottleneck_block")
)


def make(reference_dir, name, *, deployed=False):
    """Module, table of names, settings, and the reference arrays."""
    hyper = configs_of(reference_dir, "repmlp")[name]
    reference = np.load(reference_dir / "repmlp" / f"{name}.npz")
    settings = module_settings(hyper, deployed=deployed)
    spec, size = spec_of(settings), (hyper["H"], hyper["W"])
    if hyper["kind"] == "RepMLP":
        module = spec.repmlp(hyper["O"], None)
        table = [*repmlp_entries("", (), settings, (hyper["C"], hyper["O"]), size)]
        return module, table, settings, reference
    channels, hidden = (hyper["in_channels"], hyper["out_channels"]), hyper["mid_channels"]
    if hyper["kind"] == "light":
        module = LightBlock(spec, channels[1], hidden)
    else:
        module = BottleneckBlock(spec, channels[1], hidden, hyper["r"])
    narrow = hyper.get("r", 1)
    table = block_entries(
        "", (), settings, hyper["kind"], channels, size, hidden=hidden, narrow=narrow
    )
    return module, table, settings, reference


def merged(variables, settings):
    """The merged form of a module or a block."""
    params, stats = variables["params"], variables["batch_stats"]
    if "fc3" in params:
        return merge_repmlp(params, stats, settings.partition)
    return {
        name: merge_repmlp(part, stats[name], settings.partition)
        if name == "repmlp"
        else merge_conv_norm(part, stats[name])
        for name, part in params.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_evaluation_and_merged_form(reference_dir, name):
    module, table, settings, reference = make(reference_dir, name)
    variables = variables_of(table)
    x = nhwc(reference["x"])
    y = module.apply(variables, x, train=False)
    assert_close(y, nhwc(reference["y"]), TOL)

    module, table, settings, _ = make(reference_dir, name, deployed=True)
    params = merged(variables, settings)
    arrays = torch_arrays(table, params, "params")
    expected = [key for key in reference if key.startswith("deploy/")]
    assert arrays.keys() == {key.removeprefix("deploy/") for key in expected}
    for key, array in arrays.items():
        assert_close(array, reference[f"deploy/{key}"], TOL, key)
    y = module.apply({"params": params}, x, train=False)
    assert_close(y, nhwc(reference["y"]), TOL)


def test_merges_a_module_that_changes_the_channels(reference_dir):
    """The original's merge is wrong here."""
    module, table, settings, reference = make(reference_dir, "module_unequal")
    variables, x = variables_of(table), nhwc(reference["x"])
    y = module.apply(variables, x, train=False)
    assert_close(y, nhwc(reference["y"]), TOL)
    y = module.copy(merged=True).apply({"params": merged(variables, settings)}, x, train=False)
    assert_close(y, nhwc(reference["y"]), TOL)


@pytest.mark.parametrize("name", TRAINED)
def test_training_mode(reference_dir, name):
    module, table, _, reference = make(reference_dir, name)
    variables, x = variables_of(table), nhwc(reference["x"])
    y = module.apply(variables, x, train=False)
    assert_close(y, nhwc(reference["y_eval"]), TOL)
    y, loss, gradients, stats = train_pass(module, variables, x, nhwc(reference["w"]))
    assert_close(y, nhwc(reference["y_train"]), TOL)
    assert_close(loss, reference["loss"], TOL)
    for prefix, tree, collection in (
        ("grad/", gradients, "params"),
        ("after/", stats, "batch_stats"),
    ):
        arrays = torch_arrays(table, tree, collection)
        assert {prefix + key for key in arrays} == {k for k in reference if k.startswith(prefix)}
        for key, array in arrays.items():
            assert_close(array, reference[prefix + key], TOL, key)


def test_the_input_rule(reference_dir):
    reference = np.load(reference_dir / "repmlp" / "train_module_local.npz")
    np.testing.assert_array_equal(input_by_rule(reference["x"].shape), nhwc(reference["x"]))


def test_errors(reference_dir):
    module, table, _, _ = make(reference_dir, "module_local")
    variables = variables_of(table)
    with pytest.raises(
        ValueError, match=r"partitions of 7x7, which must divide it; the map is 7x8"
    ):
        module.apply(variables, jnp.zeros((1, 7, 8, 6)), train=False)
    with pytest.raises(ValueError, match="3 groups and 7 to 6 channels"):
        module.apply(variables, jnp.zeros((1, 7, 7, 7)), train=False)
