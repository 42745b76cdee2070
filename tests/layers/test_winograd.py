import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.layers import conv2d, winograd
from mdeq_jax.layers.conv import _conv2d

PAD = (1, 1)


def data(batch, height, width, c_in, c_out, dtype=None):
    x, kernel = jax.random.split(jax.random.key(0))
    return (
        jax.random.normal(x, (batch, height, width, c_in), dtype),
        jax.random.normal(kernel, (3, 3, c_in, c_out), dtype),
    )


@pytest.mark.parametrize("shape", [(2, 8, 6, 3, 5), (2, 7, 8, 5, 3), (1, 3, 5, 2, 2)])
def test_is_the_direct_convolution(shape, x64):
    x, kernel = data(*shape)
    expected = _conv2d(x, kernel, 1, PAD)
    np.testing.assert_allclose(winograd.conv3x3_tiles(x, kernel), expected, atol=1e-13)


def test_float32_is_as_exact_as_a_direct_convolution(x64):
    """The error of both against float64, relative to the largest output."""
    x, kernel = data(2, 16, 16, 64, 64)
    exact = _conv2d(x, kernel, 1, PAD)
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)

    def error(y):
        return float(jnp.max(jnp.abs(y - exact)) / jnp.max(jnp.abs(exact)))

    assert error(winograd.conv3x3_tiles(x, kernel)) < 2e-6
    assert error(_conv2d(x, kernel, 1, PAD)) < 2e-6


def convolutions(x, kernel):
    """Number of convolutions in the program of `conv2d`, without its derivatives."""
    return str(jax.make_jaxpr(conv2d)(x, kernel)).count("conv_general_dilated[")


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="GPUs have a form of their own")
def test_conv2d_takes_it_for_wide_layers_only():
    assert convolutions(*data(2, 8, 8, 64, 64)) == 0
    assert convolutions(*data(2, 8, 8, 32, 160)) == 1  # too narrow
    assert convolutions(*data(1, 8, 8, 64, 64)) == 1  # too few tiles
    assert convolutions(*data(2, 8, 8, 64, 64, jnp.bfloat16)) == 1


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="GPUs have a form of their own")
def test_derivatives_of_wide_layers(x64):
    """First and second ones, as the Jacobian loss needs them."""
    x, kernel = data(1, 16, 15, 64, 64)
    v = jax.random.normal(jax.random.key(1), x.shape)

    def of(conv):
        def loss(x, kernel):
            dx = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, kernel))))(x)
            return jnp.sum(dx * v)

        return loss

    with_products = jax.grad(of(conv2d), (0, 1))(x, kernel)
    expected = jax.grad(of(lambda x, k: _conv2d(x, k, 1, PAD)), (0, 1))(x, kernel)
    chex.assert_trees_all_close(with_products, expected, rtol=1e-10, atol=1e-9)
