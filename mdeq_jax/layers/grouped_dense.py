"""Fully connected layers side by side, one for each group of features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from mdeq_jax.layers.conv import torch_uniform


def grouped_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """A kernel `[groups, in, out]` that is orthogonal as the matrix `[groups out, in]`.

    That is what `torch.nn.init.orthogonal_` makes of a grouped 1x1 convolution (Saxe, McClelland,
    Ganguli 2014, 1312.6120).
    """
    groups, c_in, c_out = shape
    matrix = nn.initializers.orthogonal()(key, (groups * c_out, c_in), dtype)
    return matrix.reshape(groups, c_out, c_in).swapaxes(1, 2)


class GroupedDense(nn.Module):
    """One matrix for each group: a grouped 1x1 convolution whose groups come first.

    Attributes:
        features: outputs of each group.
        use_bias: whether there is a bias.
        kernel_init: initialiser of `[groups, in, out]`; None: PyTorch's default.
        dtype: to compute in; None: that of input and kernel.
    """

    features: int
    use_bias: bool = False
    kernel_init: Callable | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[groups, M, in]` to `[groups, M, features]`."""
        groups, _, c_in = x.shape
        uniform = torch_uniform(c_in)
        init = uniform if self.kernel_init is None else self.kernel_init
        kernel = self.param("kernel", init, (groups, c_in, self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))
        if self.use_bias:
            bias = self.param("bias", uniform, (groups, self.features))
            y += bias.astype(y.dtype)[:, None, :]
        return y
