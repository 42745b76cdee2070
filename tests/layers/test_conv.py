import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.layers import conv2d
from mdeq_jax.layers.conv import _conv2d, _conv2d_cpu

SHAPES = [  # kernel size, stride, height, width, channels in, channels out
    (3, 1, 8, 6, 3, 5),
    (3, 1, 5, 7, 5, 3),
    (5, 1, 8, 6, 4, 2),
    (3, 2, 8, 6, 3, 5),
    (3, 2, 7, 9, 5, 2),
    (1, 1, 4, 4, 3, 2),
]


def data(size, height, width, c_in, c_out):
    x, k = jax.random.split(jax.random.key(0))
    return (
        jax.random.normal(x, (2, height, width, c_in)),
        jax.random.normal(k, (size, size, c_in, c_out)),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_handwritten_derivatives_are_those_of_autodiff(shape, x64):
    size, stride, *rest = shape
    x, kernel = data(size, *rest)
    pad = ((size - 1) // 2,) * 2
    y, by_hand = jax.vjp(lambda x, k: _conv2d_cpu(x, k, stride, pad), x, kernel)
    expected, by_autodiff = jax.vjp(lambda x, k: _conv2d(x, k, stride, pad), x, kernel)
    np.testing.assert_allclose(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    chex.assert_trees_all_close(by_hand(dy), by_autodiff(dy), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_pytorchs(shape):
    torch = pytest.importorskip("torch")
    size, stride, *rest = shape
    x, kernel = data(size, *rest)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(np.array(x.transpose(0, 3, 1, 2))),
        torch.tensor(np.array(kernel.transpose(3, 2, 0, 1))),
        stride=stride,
        padding=(size - 1) // 2,
    )
    np.testing.assert_allclose(
        conv2d(x, kernel, stride), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5
    )


def test_second_derivatives(x64):
    """The Jacobian loss differentiates the input's derivative once more."""
    x, kernel = data(3, 4, 4, 2, 3)

    def of(conv):
        def product(k):
            _, pullback = jax.vjp(lambda x: conv(x, k, 2, (1, 1)), x)
            return jnp.sum(pullback(jnp.ones((2, 2, 2, 3)))[0] ** 2)

        return jax.grad(product)(kernel)

    np.testing.assert_allclose(of(_conv2d_cpu), of(_conv2d), atol=1e-12)


def test_refuses_other_strides():
    x, kernel = data(5, 8, 8, 2, 3)
    with pytest.raises(ValueError, match="stride 2 and a 3x3 kernel"):
        conv2d(x, kernel, 2)
