"""What the tests of RepMLP and RepMLPNet share: weights by rule, and the original's arrays."""

import json
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from configs import default
from mdeq_jax.layers import BatchNorm
from mdeq_jax.models.repmlp.blocks import BlockSpec

NORM = BatchNorm(parent=None)


def by_rule(key, shape):
    """The reference weight of a state-dict key: see REPMLP.md, section 1."""
    random = np.random.RandomState(zlib.crc32(key.encode())).randn(*shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(())
    if key.endswith("running_var"):
        weight = 0.5 + np.abs(random)
    elif len(shape) >= 2:
        weight = random / np.sqrt(np.prod(shape[1:]))
    else:
        weight = 1 + 0.2 * random if key.endswith("weight") else 0.1 * random
    return weight.astype(np.float32).astype(np.float64)


def input_by_rule(shape, seed=0):
    """The reference input `[B, H, W, C]` of an NCHW shape."""
    x = np.random.RandomState(seed).randn(*shape).astype(np.float32)
    return nhwc(x)


def nhwc(x):
    return rearrange(np.asarray(x, np.float64), "n c h w -> n h w c")


def variables_of(table, weights=by_rule, dtype=np.float64):
    """Flax variables of a table, from `weights(key, shape)`."""
    variables = {}
    for entry in table:
        if entry.path is not None:
            *path, last = entry.path
            part = variables
            for key in path:
                part = part.setdefault(key, {})
            weight = np.asarray(weights(entry.torch_name, entry.shape))
            assert weight.shape == entry.shape
            part[last] = jnp.asarray(entry.rule.to_flax(weight), dtype)
    return variables


def torch_arrays(table, variables, collection):
    """State-dict key to array of one collection ("params" or "batch_stats")."""
    arrays = {}
    for entry in table:
        if entry.path is not None and entry.path[0] == collection:
            leaf = variables
            for key in entry.path[1:]:
                leaf = leaf[key]
            arrays[entry.torch_name] = entry.rule.to_torch(np.asarray(leaf))
            assert arrays[entry.torch_name].shape == entry.shape
    return arrays


def assert_close(actual, expected, tol, name="", *, floor=0.0):
    """Relative to the largest value; differences below `floor` pass in any case."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max(initial=0)
    assert error <= max(tol * np.abs(expected).max(initial=0), floor), f"{name}: {error:.1e}"


def assert_summary(arrays, reference, prefix, tol, *, floor=0.0):
    """Arrays by name against the rows "PREFIX_names", "_shape", "_mean", "_norm", "_head"."""
    names = [str(name) for name in reference[f"{prefix}_names"]]
    assert set(names) <= arrays.keys(), set(names) - arrays.keys()
    for i, name in enumerate(names):
        array = np.asarray(arrays[name], np.float64)
        assert list(array.shape) == json.loads(str(reference[f"{prefix}_shape"][i])), name
        norm = reference[f"{prefix}_norm"][i]
        atol = max(tol * norm, floor)
        assert abs(np.sqrt(np.sum(array**2)) - norm) <= atol, name
        assert abs(array.mean() - reference[f"{prefix}_mean"][i]) <= atol / np.sqrt(array.size), (
            name
        )
        head = reference[f"{prefix}_head"][i]
        head = head[~np.isnan(head)]
        np.testing.assert_allclose(array.reshape(-1)[:16], head, rtol=0, atol=atol, err_msg=name)
    return names


def train_pass(module, variables, x, w):
    """Output, loss, gradients and new statistics of one pass in training mode."""

    def loss(params):
        y, changed = module.apply(
            {**variables, "params": params}, x, train=True, mutable="batch_stats"
        )
        y = getattr(y, "logits", y)
        return jnp.mean(y * w), (y, changed["batch_stats"])

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (y, stats)), gradients = gradient(variables["params"])
    return y, value, gradients, stats


def module_settings(hyper, *, deployed=False):
    """Hyper-parameters of the original's RepMLP under the names of `config.model`."""
    return SimpleNamespace(
        partition=(hyper["h"], hyper["w"]),
        kernels=tuple(hyper["kernels"] or ()),
        groups=hyper["fc3_groups"],
        global_reduction=hyper["fc1_fc2_reduction"],
        deployed=deployed,
    )


def spec_of(settings):
    return BlockSpec(
        settings.partition,
        settings.kernels,
        settings.groups,
        settings.global_reduction,
        NORM,
        settings.deployed,
    )


def resnet_config(hyper):
    config = default.get_config("repmlp_resnet")
    config.model.update(
        block=hyper["block_type"],
        num_blocks=tuple(hyper["num_blocks"]),
        partition=(hyper["h"], hyper["w"]),
        kernels=tuple(hyper["kernels"]),
        groups=hyper["fc3_groups"],
        num_classes=hyper["num_classes"],
    )
    config.data.image_size = (hyper["img_H"], hyper["img_W"])
    return config.lock()


def repmlpnet_config(hyper, side):
    config = default.get_config("repmlpnet")
    assert hyper["hs"] == hyper["ws"]
    config.model.update(
        channels=tuple(hyper["channels"]),
        num_blocks=tuple(hyper["num_blocks"]),
        partitions=tuple(hyper["hs"]),
        sharesets=tuple(hyper["sharesets_nums"]),
        kernels=tuple(hyper["reparam_conv_k"]),
        patch_size=hyper["patch_size"][0],
        gate_reduction=hyper["globalperceptron_reduce"],
        ffn_expansion=hyper["ffn_expand"],
        num_classes=hyper["num_class"],
    )
    config.data.image_size = (side, side)
    return config.lock()


def configs_of(reference_dir, room):
    return json.loads((reference_dir / room / "configs.json").read_text())
