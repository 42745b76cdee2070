import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.layers import conv2d, group_norm, winograd
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


@pytest.mark.parametrize("shape", [(6, 8, 6, 3, 5), (6, 9, 11, 3, 4), (1, 33, 7, 8, 3)])
@pytest.mark.parametrize("block", [500, 6_000])
def test_blocks_of_images_and_of_rows(shape, block, monkeypatch, x64):
    x, kernel = data(*shape)
    expected = _conv2d(x, kernel, 1, PAD)
    monkeypatch.setattr(winograd, "_WHOLE", 0)
    monkeypatch.setattr(winograd, "_BLOCK", block)
    np.testing.assert_allclose(winograd.conv3x3_tiles(x, kernel), expected, atol=1e-13)


def test_blocks_keep_to_the_limit():
    def block(batch, height, width, channels):
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
        return winograd._block((batch, height, width, channels), kernel)

    assert block(2, 32, 32, 120) == (2, 32)  # all at once
    assert block(32, 32, 32, 120) == (4, 32)  # 2 MB an image
    assert block(7, 64, 64, 120) == (1, 64)  # 7.9 MB an image
    assert block(2, 32, 32, 24) == (1, 32)  # two blocks, as it is not wide
    assert block(1, 32, 32, 24) == (1, 32)
    images, rows = block(3, 512, 256, 64)
    assert (images, rows % 2) == (1, 0)
    assert 4 * rows * 256 * 4 * 64 <= winograd._BLOCK < 4 * (rows + 2) * 256 * 4 * 64


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="GPUs have a form of their own")
def test_an_image_has_the_same_numbers_in_any_batch():
    """Also next to operations with which XLA would fuse the sums of the tiles."""
    x, kernel = data(48, 16, 16, 24, 120)
    layer = jax.jit(lambda x: group_norm(conv2d(x, kernel), 8, relu=True))
    for size in (4, 16):
        np.testing.assert_array_equal(layer(x[:size]), layer(x)[:size])


def convolutions(x, kernel):
    """Number of convolutions in the program of `conv2d`, without its derivatives."""
    return str(jax.make_jaxpr(conv2d)(x, kernel)).count("conv_general_dilated[")


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="GPUs have a form of their own")
def test_conv2d_takes_it_where_it_pays_off():
    assert convolutions(*data(2, 8, 8, 64, 64)) == 0
    assert convolutions(*data(1, 8, 8, 64, 64)) == 1  # too few tiles
    assert convolutions(*data(2, 8, 8, 64, 64, jnp.bfloat16)) == 1
    assert convolutions(*data(4, 16, 16, 24, 120)) == 0
    assert convolutions(*data(2, 16, 16, 24, 120)) == 1  # too few tiles for a narrow layer
    assert convolutions(*data(64, 8, 8, 24, 120)) == 1  # short rows
    assert convolutions(*data(4, 16, 16, 24, 48)) == 1  # too narrow
    any_batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 16, 16, 64"), jnp.float32)
    assert convolutions(any_batch, jnp.ones((3, 3, 64, 64))) == 1


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="GPUs have a form of their own")
@pytest.mark.parametrize("shape", [(1, 16, 15, 64, 64), (4, 16, 16, 32, 64)])
def test_derivatives(shape, x64):
    """First and second ones, as the Jacobian loss needs them."""
    x, kernel = data(*shape)
    assert convolutions(x, kernel) == 0
    v = jax.random.normal(jax.random.key(1), x.shape)

    def of(conv):
        def loss(x, kernel):
            dx = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, kernel))))(x)
            return jnp.sum(dx * v)

        return loss

    with_products = jax.grad(of(conv2d), (0, 1))(x, kernel)
    expected = jax.grad(of(lambda x, k: _conv2d(x, k, 1, PAD)), (0, 1))(x, kernel)
    chex.assert_trees_all_close(with_products, expected, rtol=1e-10, atol=1e-9)
