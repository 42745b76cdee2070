"""RepMLP-ResNets against the original's arrays, in training, evaluation and merged form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mdeq_jax.convert.entries import count_parameters
from mdeq_jax.convert.repmlp.names import resnet_table
from mdeq_jax.models import build_model, deploy
from tests.helpers.repmlp import (
    assert_close,
    assert_summary,
    configs_of,
    input_by_rule,
    resnet_config,
    torch_arrays,
    train_pass,
    variables_of,
)

TOL = 1e-10
PARAMETERS = {
    "res50_light_224": {"train": 87_038_248, "deploy": 86_142_440},
    "res50_bottleneck_224": {"train": 41_071_144, "deploy": 40_871_528},
}


def load(reference_dir, name):
    config = resnet_config(configs_of(reference_dir, "repmlp")[name])
    return config, np.load(reference_dir / "repmlp" / f"{name}.npz")


def activations(intermediates, block):
    """The original's names of activations, to arrays in its layout."""
    parts = intermediates["backbone"]
    prefix = {"light": "light", "bottleneck": "btnk"}[block]
    stem = jax.nn.relu(parts["stem"]["__call__"][0])
    padded = np.pad(np.asarray(stem), ((0, 0), (1, 1), (1, 1), (0, 0)))  # ReLU's are not below 0
    found = {
        "stage0": np.maximum.reduce(
            [
                padded[:, i : -2 + i or None : 2, j : -2 + j or None : 2]
                for i in range(3)
                for j in range(3)
            ]
        )
    }
    for name, part in parts.items():
        if name.startswith("stage"):
            found[name.replace("_", ".")] = part["__call__"][0]
            if "repmlp" in part:
                found[f"{name.replace('_', '.')}.{prefix}_repmlp"] = part["repmlp"]["__call__"][0]
    found["gap"] = np.mean(parts["__call__"][0][-1], axis=(1, 2), keepdims=True)
    return {name: rearrange(np.asarray(a), "n h w c -> n c h w") for name, a in found.items()}


def check_both_forms(config, reference, dtype, tol):
    """Logits, activations and merged tensors, with weights by rule."""
    table = resnet_table(config)
    assert count_parameters(table) == reference["train_form_params"]
    variables = variables_of(table, dtype=dtype)
    height, width = config.data.image_size
    x = input_by_rule((2, 3, height, width)).astype(dtype)
    model = build_model(config)
    apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    out, inner = apply(variables, x)
    assert_close(out.logits, reference["logits_train_form"], tol)
    assert out.solution is None
    found = activations(inner["intermediates"], config.model.block)
    assert found.keys() == set(assert_summary(found, reference, "act", tol))

    merged, deployed = deploy(variables, config)
    table = resnet_table(deployed)
    assert count_parameters(table) == reference["deploy_form_params"]
    arrays = torch_arrays(table, merged["params"], "params")
    assert arrays.keys() >= set(assert_summary(arrays, reference, "deploy", tol))
    out = jax.jit(build_model(deployed).apply)(merged, x)
    assert_close(out.logits, reference["logits_deploy_form"], tol)
    return model, variables


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block", ["light", "bottleneck"])
def test_small_network(reference_dir, block):
    config, reference = load(reference_dir, f"res_small_{block}_112")
    check_both_forms(config, reference, np.float64, TOL)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block", ["light", "bottleneck"])
def test_training_mode(reference_dir, block):
    config, reference = load(reference_dir, f"res_small_{block}_112")
    table = resnet_table(config)
    x, w = input_by_rule(reference["train_x_shape"], seed=2), reference["train_w"]
    y, loss, gradients, stats = train_pass(build_model(config), variables_of(table), x, w)
    assert_close(y, reference["train_logits"], TOL)
    assert_close(loss, reference["train_loss"], TOL)
    arrays = torch_arrays(table, gradients, "params")
    assert arrays.keys() == set(assert_summary(arrays, reference, "grad", TOL))
    arrays = torch_arrays(table, stats, "batch_stats")
    assert arrays.keys() == set(assert_summary(arrays, reference, "after", TOL))


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_networks(reference_dir, name):
    """Keys, shapes, order and parameter counts of both forms; nothing is computed."""
    shapes = json.loads((reference_dir / "repmlp" / "state_dicts.json").read_text())[name]
    config, _ = load(reference_dir, name)
    for form in ("train", "deploy"):
        if form == "deploy":
            config = config.copy_and_resolve_references()
            with config.unlocked():
                config.model.deployed = True
        table = resnet_table(config)
        keys = {entry.torch_name: list(entry.shape) for entry in table}
        assert keys == shapes[form] and list(keys) == list(shapes[form])
        images = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
        variables = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
        paths = {
            tuple(key.key for key in path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        }
        assert paths == {
            entry.path: entry.rule.to_flax(np.empty(entry.shape, bool)).shape
            for entry in table
            if entry.path is not None
        }
        assert count_parameters(table) == PARAMETERS[name][form]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_in_float64(reference_dir, name):
    check_both_forms(*load(reference_dir, name), np.float64, TOL)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_in_float32(reference_dir, name):
    check_both_forms(*load(reference_dir, name), np.float32, 1e-4)
