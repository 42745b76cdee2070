"""RepMLPNet against the original's arrays, in training, evaluation and merged form."""

import json
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mdeq_jax.convert.entries import count_parameters
from mdeq_jax.convert.repmlp.names import repmlp_block_entries, repmlpnet_table
from mdeq_jax.models import build_model, deploy
from mdeq_jax.models.repmlp.merge import merge_repmlp_block
from mdeq_jax.models.repmlpnet.block import RepMLPBlock
from tests.helpers.repmlp import (
    NORM,
    assert_close,
    assert_summary,
    configs_of,
    input_by_rule,
    nhwc,
    repmlpnet_config,
    torch_arrays,
    train_pass,
    variables_of,
)

TOL, FLOOR = 1e-10, 1e-13  # below the floor are gradients that vanish exactly (REPMLP.md, trap 7)
SHARED_SCALE = "repconv1.conv.weight"  # scale-invariant: its gradient is of the order of BN's eps


def load(reference_dir, name):
    reference = np.load(reference_dir / "repmlpnet" / f"{name}.npz")
    return configs_of(reference_dir, "repmlpnet")[name], reference


def make_block(hyper, *, deployed=False):
    settings = SimpleNamespace(
        gate_reduction=hyper["globalperceptron_reduce"],
        kernels=tuple(hyper["kernels"]),
        deployed=deployed,
    )
    partition, sharesets = (hyper["h"], hyper["w"]), hyper["sharesets"]
    block = RepMLPBlock(
        partition, settings.kernels, sharesets, settings.gate_reduction, NORM, deployed
    )
    table = repmlp_block_entries("", (), settings, hyper["channels"], sharesets, partition)
    return block, [*table], partition


def shipped(reference):
    """The weights in the file, which also follow the rule."""
    return lambda key, shape: reference[f"param/{key}"].reshape(shape)


def check_training(module, table, reference, variables):
    """Output, loss, gradients and new statistics of a pass in training mode."""
    x, w = nhwc(reference["x"]), reference["w"]
    w = nhwc(w) if w.ndim == 4 else w
    y, loss, gradients, stats = train_pass(module, variables, x, w)
    expected = reference["y_train"]
    assert_close(y, nhwc(expected) if expected.ndim == 4 else expected, TOL)
    assert_close(loss, reference["loss"], TOL)
    for prefix, tree, collection in (
        ("grad/", gradients, "params"),
        ("after/", stats, "batch_stats"),
    ):
        arrays = torch_arrays(table, tree, collection)
        assert {prefix + key for key in arrays} == {k for k in reference if k.startswith(prefix)}
        for key, array in arrays.items():
            floor = 1e-11 if key.endswith(SHARED_SCALE) else FLOOR
            assert_close(array, reference[prefix + key], TOL, key, floor=floor)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["block_one_part", "block_parts"])
def test_block(reference_dir, name):
    hyper, reference = load(reference_dir, name)
    block, table, partition = make_block(hyper)
    variables, x = variables_of(table, shipped(reference)), nhwc(reference["x"])
    y, inner = block.apply(variables, x, train=False, capture_intermediates=True)
    inner = inner["intermediates"]
    assert_close(y, nhwc(reference["y_eval"]), TOL)
    gate = inner["gate"]["__call__"][0]
    assert_close(gate, reference["act/gp"][:, :, 0, 0], TOL)
    fc3 = rearrange(inner["fc3"]["__call__"][0], "s m p -> m (s p)")
    assert_close(fc3, reference["act/fc3"][:, :, 0, 0], TOL)

    params = merge_repmlp_block(variables["params"], variables["batch_stats"], partition)
    block_merged, merged_table, _ = make_block(hyper, deployed=True)
    arrays = torch_arrays(merged_table, params, "params")
    for key in ("fc3.weight", "fc3.bias"):
        assert_close(arrays[key], reference[f"deploy/{key}"], TOL, key)
    y = block_merged.apply({"params": params}, x, train=False)
    assert_close(y, nhwc(reference["y_deploy"]), TOL)
    check_training(block, table, reference, variables)


def activations(intermediates):
    """The original's names of activations, to arrays in its layout."""
    parts = intermediates["backbone"] | {"head_norm": intermediates["head_norm"]}
    found = {}
    for name, part in parts.items():
        if name == "embed":
            found["conv_embedding"] = nn.relu(part["__call__"][0])
        elif name.startswith("embed"):
            found[f"embeds.{name.removeprefix('embed')}"] = nn.relu(part["__call__"][0])
        elif name == "head_norm":
            found["head_norm"] = part["__call__"][0]
        elif name.startswith("stage"):
            unit = f"stages.{name.removeprefix('stage').replace('_', '.')}"
            found[unit] = part["__call__"][0]
            found[f"{unit}.repmlp_block"] = part["repmlp"]["__call__"][0]
            gate = part["repmlp"]["gate"]["__call__"][0]
            found[f"{unit}.repmlp_block.gp"] = gate[:, None, None, :]
    return {name: rearrange(np.asarray(a), "n h w c -> n c h w") for name, a in found.items()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["tiny", "tiny_parts"])
def test_small_network(reference_dir, name):
    hyper, reference = load(reference_dir, name)
    config = repmlpnet_config(hyper, hyper["input"][-1])
    model, table = build_model(config), repmlpnet_table(config)
    variables, x = variables_of(table, shipped(reference)), nhwc(reference["x"])
    out, inner = jax.jit(partial(model.apply, capture_intermediates=True))(variables, x)
    assert_close(out.logits, reference["y_eval"], TOL)
    assert out.solution is None
    found = activations(inner["intermediates"])
    assert {f"act/{key}" for key in found} == {k for k in reference if k.startswith("act/")}
    for key, array in found.items():
        assert_close(array, reference[f"act/{key}"], TOL, key)
    check_training(model, table, reference, variables)

    merged, config = deploy(variables, config)
    arrays = torch_arrays(repmlpnet_table(config), merged["params"], "params")
    for key in reference:
        if key.startswith("deploy/"):
            assert_close(arrays[key.removeprefix("deploy/")], reference[key], TOL, key)
    y = jax.jit(build_model(config).apply)(merged, x).logits
    assert_close(y, reference["y_deploy"], TOL)


@pytest.mark.parametrize("name", ["T224", "T256", "B224", "B256", "D256", "L256"])
def test_the_published_networks(reference_dir, name):
    """Keys, shapes, order and parameter counts of both forms; nothing is computed."""
    text = (reference_dir / "repmlpnet" / "variants.json").read_text()
    variant = json.loads(text)[f"RepMLPNet-{name}"]
    side = variant["hyper"]["input_resolution"]
    config = repmlpnet_config(variant["hyper"], side)
    for form in ("train", "deploy"):
        if form == "deploy":
            config = config.copy_and_resolve_references()
            with config.unlocked():
                config.model.deployed = True
        table = repmlpnet_table(config)
        keys = {entry.torch_name: list(entry.shape) for entry in table}
        assert keys == variant[form] and list(keys) == list(variant[form])
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
        paths = {
            tuple(key.key for key in path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        }
        assert paths == {
            entry.path: entry.rule.to_flax(np.empty(entry.shape, bool)).shape
            for entry in table
            if entry.path is not None
        }
        assert count_parameters(table) == variant[f"{form}_params"] == PARAMETERS[name][form]


PARAMETERS = {
    "T224": {"train": 38_293_608, "deploy": 38_331_720},
    "T256": {"train": 58_687_848, "deploy": 58_739_400},
    "B224": {"train": 68_242_712, "deploy": 68_332_664},
    "B256": {"train": 96_447_512, "deploy": 96_568_184},
    "D256": {"train": 86_887_648, "deploy": 86_985_280},
    "L256": {"train": 117_641_560, "deploy": 117_820_600},
}


def full_size(reference_dir, dtype, tol):
    """RepMLPNet-T224 in both forms, with weights by rule."""
    text = (reference_dir / "repmlpnet" / "variants.json").read_text()
    config = repmlpnet_config(json.loads(text)["RepMLPNet-T224"]["hyper"], 224)
    reference = np.load(reference_dir / "repmlpnet" / "T224.npz")
    table = repmlpnet_table(config)
    variables = variables_of(table, dtype=dtype)
    x = input_by_rule((2, 3, 224, 224)).astype(dtype)
    apply = partial(build_model(config).apply, capture_intermediates=True)
    out, inner = jax.jit(apply)(variables, x)
    assert_close(out.logits, reference["logits_train_form"], tol)
    names = assert_summary(activations(inner["intermediates"]), reference, "act", tol)
    assert len(names) == 41

    merged, config = deploy(variables, config)
    arrays = torch_arrays(repmlpnet_table(config), merged["params"], "params")
    assert_summary(arrays, reference, "deploy", tol)
    out = jax.jit(build_model(config).apply)(merged, x)
    assert_close(out.logits, reference["logits_deploy_form"], tol)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_full_size_in_float64(reference_dir):
    full_size(reference_dir, np.float64, TOL)


@pytest.mark.slow
def test_full_size_in_float32(reference_dir):
    full_size(reference_dir, np.float32, 1e-4)
