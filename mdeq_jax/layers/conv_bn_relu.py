"""Convolution, batch norm, ReLU."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers.conv import Conv
from mdeq_jax.layers.norm import BatchNorm


class ConvBNReLU(nn.Module):
    """`Conv`, batch norm, ReLU.

    Attributes:
        features: C_out.
        size: of the kernel.
        norm: the batch norm to copy.
        stride: 1 or 2.
        use_bias: whether the convolution has a bias.
        dtype: to compute in; None: that of input and kernel.
    """

    features: int
    size: int
    norm: BatchNorm
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H', W', features]`."""
        x = Conv(self.features, self.size, self.stride, self.use_bias, self.dtype, name="conv")(x)
        return nn.relu(self.norm.copy(name="norm")(x, train=train))
