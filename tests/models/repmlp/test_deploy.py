"""Deploying: the merged network computes the same, and bad input is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, repmlp_digits
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.models import build_model, deploy

RESNET = dict(num_blocks=(1, 2, 2, 1), channels=(4, 16, 16, 32, 16), partition=(2, 2), groups=1)
NET = dict(channels=(4, 8), num_blocks=(1, 2), partitions=(4, 2), sharesets=(1, 4))
NETWORKS = {
    "light": ("repmlp_resnet", RESNET, 32),
    "bottleneck": ("repmlp_resnet", RESNET | {"block": "bottleneck"}, 32),
    "base": ("repmlp_resnet", RESNET | {"block": "base"}, 32),
    "mlp": ("repmlp_mlp", dict(channels=(4, 8), num_blocks=(1, 2), partition=(4, 4)), 8),
    "odd_mlp": (
        "repmlp_mlp",
        dict(channels=(5, 3), num_blocks=(1, 1), partition=(2, 4), kernels=(7,), groups=1),
        8,
    ),
    "no_kernels": ("repmlpnet", NET | {"kernels": ()}, 16),
    "net": ("repmlpnet", NET, 16),
    "net_parts": ("repmlpnet", NET | {"partitions": (2, 2)}, 16),
    "segmenter": ("repmlp_segmenter", RESNET, 32),
    "net_segmenter": ("repmlpnet_segmenter", NET | {"final_conv_kernel": 3}, 16),
}


def make_config(name, **model):
    family, fields, side = NETWORKS[name]
    config = default.get_config(family)
    config.model.update(num_classes=5, **{**fields, **model})
    config.data.image_size = (side, side)
    return config


def trained(config, dtype=np.float64):
    """Random variables, as no initialisation would give them."""
    images = jnp.zeros((1, *config.data.image_size, 3))
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "var":
            return (0.5 + np.abs(values)).astype(dtype)
        if leaf.ndim > 1:
            return (values * np.sqrt(3 / np.prod(leaf.shape[:-1]))).astype(dtype)
        return (float(path[-1].key == "scale") + 0.2 * values).astype(dtype)

    return jax.tree_util.tree_map_with_path(random, shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_merged_network_computes_the_same(name, x64):
    config = make_config(name)
    variables = trained(config)
    merged, deployed = deploy(variables, config)
    images = np.random.default_rng(1).normal(size=(3, *config.data.image_size, 3))
    before = jax.jit(build_model(config).apply)(variables, images).logits
    after = jax.jit(build_model(deployed).apply)(merged, images).logits
    assert np.std(before, axis=0).max() > 1e-3 * np.abs(before).max()  # the images matter
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())
    shapes = jax.eval_shape(build_model(deployed).init, jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes(merged, shapes)
    assert deployed.model.deployed and not config.model.deployed


def test_type_of_the_merged_arrays():
    config = make_config("mlp")
    variables = trained(config, np.float32)
    before = jax.tree.map(np.copy, variables)
    for dtype, expected in ((None, np.float32), (np.float64, np.float64)):
        merged, _ = deploy(variables, config, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(expected)}
    chex.assert_trees_all_equal(variables, before)


def test_deploying_twice():
    config = make_config("net")
    merged, deployed = deploy(trained(config), config)
    with pytest.raises(ValueError, match=r"deployed already \(model\.deployed=True\)"):
        deploy(merged, deployed)
    config = make_config("light")
    merged, _ = deploy(trained(config), config)
    with pytest.raises(ValueError, match="deployed already, set"):
        deploy(merged, config)


def test_a_mixture_of_both_forms():
    config = make_config("mlp")
    variables = trained(config)
    merged, _ = deploy(variables, config)
    variables["params"]["stage0_repmlp1"] = merged["params"]["stage0_repmlp1"]
    del variables["batch_stats"]["stage0_repmlp1"]
    with pytest.raises(ValueError, match=r"(?s)stage0_repmlp1/fc3_norm/mean is missing.* more"):
        deploy(variables, config)


def test_weights_that_are_not_finite():
    config = make_config("net")
    variables = trained(config)
    variables["batch_stats"]["backbone"]["stage1_0"]["repmlp"]["fc3_norm"]["var"][0] = -1
    with (
        pytest.warns(RuntimeWarning, match="invalid value"),
        pytest.raises(ValueError, match=r"backbone/stage1_0/repmlp cannot be merged"),
    ):
        deploy(variables, config)


def test_half_precision_keeps_the_statistics_that_stay():
    config = make_config("net")
    variables = trained(config, np.float32)
    variables["params"] = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables["params"])
    merged, _ = deploy(variables, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged["params"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(merged["batch_stats"])} == {np.dtype("float32")}


def test_families_without_a_merged_form():
    with pytest.raises(ValueError, match=r"'mdeq_classifier' has no merged form; .*repmlpnet"):
        deploy({}, default.get_config())


BAD = [
    ("light", dict(kernels=(1, 2)), r"odd sizes .* got \(1, 2\)"),
    ("light", dict(kernels=(3, 3)), "different odd sizes"),
    ("light", dict(partition=(3, 2)), "Stage 2 cuts .* 3x2.* the map is 4x4.* data.image_size"),
    ("light", dict(groups=3), r"3 groups and 2 channels\. Change model\.groups"),
    ("light", dict(block="heavy"), r"model\.block must be one of .*got 'heavy'"),
    ("light", dict(num_blocks=(1, 1)), r"model\.num_blocks must have 4 entries"),
    ("light", dict(channels=(4, 16)), r"model\.channels must have 5 entries"),
    ("light", dict(global_reduction=0), r"model\.global_reduction must be at least 1; got 0"),
    ("light", dict(global_reduction=65), r"global_reduction=65 leaves no hidden .* 8 in stage 2"),
    ("light", dict(channels=(4, 4, 4, 4, 4)), r"Stage 2: its RepMLPs would have no channel"),
    ("base", dict(channels=(4, 2, 4, 4, 4)), "a stage has at least 4 channels"),
    ("bottleneck", dict(bottleneck_reduction=(0, 2)), r"bottleneck_reduction=\(0, 2\) must be"),
    ("mlp", dict(groups=3), "3 groups and 4 channels"),
    ("mlp", dict(partition=(3, 3)), "Stage 0 cuts .* 3x3"),
    ("net", dict(sharesets=(1, 3)), "3 sharesets and 8 channels"),
    ("net", dict(sharesets=(1,)), r"model\.sharesets must have 2 entries"),
    ("net", dict(partitions=(3, 2)), "Stage 0 cuts .* 3x3.* the map is 4x4"),
    ("net", dict(partitions=(0, 2)), r"model\.partitions must be positive"),
    ("net", dict(gate_reduction=16), "leaves no hidden channel"),
]


@pytest.mark.parametrize(("name", "fields", "message"), BAD)
def test_settings_that_cannot_work(name, fields, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build_model(make_config(name, **fields))


def test_an_image_size_is_needed():
    config = make_config("net")
    config.data.image_size = None
    with pytest.raises(ValueError, match=r"needs data\.image_size; it is None"):
        build_model(config)


def test_notes_on_a_merged_form_in_training_and_on_scrambled_partitions():
    assert unused_settings(repmlp_digits.get_config(), training=True) == []
    for name in ("light", "net"):
        config = make_config(name, deployed=True)
        assert "trains the merged form" in unused_settings(config, training=True)[-1]
        assert unused_settings(config, training=False) == []
    lines = unused_settings(make_config("net_parts"), training=False)
    assert len(lines) == 1 and "stage 0 has 4 partitions of 2x2" in lines[0]
