"""Convolutions with groups and any stride, at PyTorch's initialisation; with batch norm too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.layers.conv import DIMENSIONS, conv2d, torch_uniform
from mdeq_jax.layers.norm import BatchNorm


def grouped_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """2-D convolution with the arguments of `torch.nn.functional.conv2d`.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[k, k, C_in / groups, C_out]`.
        stride: any.
        padding: zeros on every side.
        groups: groups of consecutive channels that do not see each other.

    Returns:
        `[B, H', W', C_out]` with H' = (H + 2 padding - k) // stride + 1.
    """
    size = kernel.shape[0]
    x, kernel = promote_dtype(x, kernel)
    if size == 1 and groups == 1 and padding == 0:
        return conv2d(x[:, ::stride, ::stride], kernel)
    if size == stride and groups == 1 and padding == 0:
        return _patches_conv2d(x, kernel)
    same = 2 * padding == size - 1
    if groups == 1 and same and stride <= 2 and size <= 3:
        return conv2d(x, kernel, stride)
    on_cpu = hardware.target().platform == "cpu" and groups > 1 and stride == 1 and same
    conv = _grouped_conv2d_cpu if on_cpu else _grouped_conv2d
    return conv(x, kernel, stride, padding, groups)


def _grouped_conv2d(x, kernel, stride, padding, groups):
    pad = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pad,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def _grouped_conv2d_cpu(x, kernel, stride, padding, groups):
    """For stride 1: a convolution for each group, or a sum of shifted images if it is depthwise.

    On CPUs the derivatives of XLA's grouped convolutions take 30 to 60 times as long.
    """
    del stride
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise_conv2d(x, kernel, padding)
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1))
    return jnp.concatenate([conv2d(*part) for part in parts], axis=-1)


def _patches_conv2d(x, kernel):
    """Windows next to each other: one matrix product."""
    size = kernel.shape[0]
    x = x[:, : x.shape[1] // size * size, : x.shape[2] // size * size]
    patches = rearrange(x, "n (a i) (b j) c -> n a b i j c", i=size, j=size)
    return lax.dot_general(patches, kernel, (((3, 4, 5), (0, 1, 2)), ((), ())))


def _depthwise_conv2d(x, kernel, padding) -> jax.Array:
    """A sum of shifted images, one for each tap."""
    size = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = (n - size + 1 for n in x.shape[1:3])
    taps = kernel[:, :, 0, :][:, :, None, None, None, :]
    shifted = (
        x[:, i : i + height, j : j + width] * taps[i, j] for i in range(size) for j in range(size)
    )
    return sum(shifted, start=jnp.zeros((), x.dtype))


class GroupedConv(nn.Module):
    """`grouped_conv2d` with its kernel; kernel and bias at PyTorch's default initialisation.

    Attributes:
        features: C_out.
        size: k.
        stride: any.
        padding: on every side; None: (k - 1) / 2.
        groups: of channels.
        use_bias: whether there is a bias.
        dtype: to compute in; None: that of input and kernel.
    """

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C_in]` to `[B, H', W', features]`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        init = torch_uniform(self.size**2 * shape[2])
        kernel = self.param("kernel", init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        padding = (self.size - 1) // 2 if self.padding is None else self.padding
        y = grouped_conv2d(x, kernel, self.stride, padding, self.groups)
        if self.use_bias:
            bias = self.param("bias", init, (self.features,))
            y += bias.astype(y.dtype)[None, None, None, :]
        return y


class ConvNorm(nn.Module):
    """A convolution and its batch norm; or, merged, a convolution with a bias.

    Attributes:
        features: C_out.
        size: k.
        norm: the batch norm to copy.
        stride: any.
        padding: on every side; None: (k - 1) / 2.
        groups: of channels.
        merged: whether the batch norm has been merged into the convolution.
        dtype: to compute in; None: that of input and kernel.
    """

    features: int
    size: int
    norm: BatchNorm
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    merged: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C_in]` to `[B, H', W', features]`."""
        x = GroupedConv(
            self.features,
            self.size,
            self.stride,
            self.padding,
            self.groups,
            use_bias=self.merged,
            dtype=self.dtype,
            name="conv",
        )(x)
        return x if self.merged else self.norm.copy(name="norm")(x, train=train)
