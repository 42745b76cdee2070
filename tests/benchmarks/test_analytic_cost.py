"""Multiply-adds of a network: by hand, by its parameters, by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.analytic_cost import (
    CELL_PARTS,
    Convolution,
    Work,
    convolutions,
    forward_work,
    inference_work,
    training_work,
)
from benchmarks.workload import random_batch
from configs import cifar10_tiny, cityscapes_small, digits, imagenet_small
from mdeq_jax.models import apply_cell, build_model


def macs(config, *parts):
    return sum(conv.multiply_adds for conv in convolutions(config) if conv.part in parts)


def test_one_convolution_by_hand():
    conv = Convolution("blocks", 3, 24, 120, 32, 32)
    assert conv.weights == 9 * 24 * 120
    assert conv.multiply_adds == 9 * 24 * 120 * 32 * 32
    assert conv.elements == 32 * 32 * (24 + 120)
    halving = Convolution("fusion", 3, 24, 24, 16, 16, 2)
    assert halving.multiply_adds == 9 * 24 * 24 * 16 * 16
    assert halving.elements == 32 * 32 * 24 + 16 * 16 * 24


def test_cifar10_tiny_by_hand():
    config = cifar10_tiny.get_config()
    high, low = 32 * 32, 16 * 16
    assert macs(config, "stem") == high * 9 * (3 * 24 + 24 * 24)
    assert macs(config, "blocks") == (high + low) * 2 * 9 * 24 * 120
    # From high to low one 3x3 of stride 2, from low to high a 1x1 before the upsampling.
    assert macs(config, "fusion") == low * 9 * 24 * 24 + low * 24 * 24
    assert macs(config, "post-fusion") == (high + low) * 24 * 24
    bottlenecks = high * (24 * 8 + 9 * 8 * 8 + 8 * 32 + 24 * 32)
    bottlenecks += low * (24 * 16 + 9 * 16 * 16 + 16 * 64 + 24 * 64)
    rest = low * 9 * 32 * 64 + low * 64 * 200 + 200 * 10
    assert macs(config, "head") == bottlenecks + rest


def deep_digits():
    config = digits.get_config()
    with config.unlocked():
        config.model.num_blocks, config.model.big_kernels = (2, 1), (1, 0)
    return config


@pytest.mark.parametrize(
    "get_config",
    [digits.get_config, deep_digits, imagenet_small.get_config, cityscapes_small.get_config],
)
def test_every_kernel_is_counted_once(get_config):
    config = get_config()
    images = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
    params = jax.eval_shape(build_model(config).init, jax.random.key(0), images)["params"]
    for part, names in (("stem", ("stem",)), ("cell", CELL_PARTS), ("head", ("head",))):
        kernels = sum(leaf.size for leaf in jax.tree.leaves(params[part]) if leaf.ndim in (2, 4))
        assert kernels == sum(c.weights for c in convolutions(config) if c.part in names)


def test_xla_counts_as_many():
    """Up to products with the padding, and the norms, which are small for wide convolutions."""
    config = digits.get_config()
    with config.unlocked():
        config.model.expansion = 20
        config.data.image_size = (16, 16)
    model, image = build_model(config), random_batch(config, 2)["image"]
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    arguments = jax.eval_shape(
        lambda v, i: model.fixed_point_problem(v, i)._replace(f=None), variables, image
    )
    _, weights, x, state = arguments
    lowered = apply_cell.lower(model.cell.spec, weights, state, x)
    counted = forward_work(config, 2, CELL_PARTS).flops
    assert 0.85 < lowered.cost_analysis()["flops"] / counted < 1.1


def test_solver_steps_count():
    config = cifar10_tiny.get_config()
    cell = forward_work(config, 4, CELL_PARTS)
    outside = forward_work(config, 4, ("stem", "head"))
    inference = inference_work(config, 4, forward_nfe=19)
    np.testing.assert_allclose(inference, outside + cell * 20)
    training = training_work(config, 4, forward_nfe=19, backward_nfe=21)
    np.testing.assert_allclose(training, outside * 3 + cell * (20 + 21 + 2))
    assert forward_work(config, 8).flops == 2 * forward_work(config, 4).flops


def test_bfloat16_moves_half_the_bytes():
    config = cifar10_tiny.get_config()
    with config.unlocked():
        config.precision = "bfloat16"
    single = forward_work(cifar10_tiny.get_config(), 4)
    assert forward_work(config, 4) == Work(single.flops, single.bytes / 2)
