"""The RepMLP block of RepMLPNet and the unit around it (Ding et al. 2022, 2112.11081)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype

from mdeq_jax.layers import (
    BatchNorm,
    ConvNorm,
    GroupedDense,
    grouped_conv2d,
    torch_dense,
    torch_uniform,
)
from mdeq_jax.models.repmlp.module import check_partition


class Gate(nn.Module):
    """One factor for each channel, from the mean over the map: squeeze and excitation.

    Attributes:
        reduction: by which the hidden layer is narrower.
        dtype: to compute in; None: that of input and kernel.
    """

    reduction: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to factors `[B, C]` in (0, 1)."""
        channels = x.shape[-1]
        hidden = channels // self.reduction
        v = jnp.mean(x, axis=(1, 2))
        v = torch_dense(channels, hidden, dtype=self.dtype, name="fc1")(v)
        v = torch_dense(hidden, channels, dtype=self.dtype, name="fc2")(nn.relu(v))
        return nn.sigmoid(v)


class SharedDepthwise(nn.Module):
    """A depthwise convolution with one kernel for each shareset, and its batch norm.

    Attributes:
        size: k.
        sharesets: S; channel c uses kernel and statistics c mod S.
        norm: the batch norm to copy.
        dtype: to compute in; None: that of input and kernel.
    """

    size: int
    sharesets: int
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[M, h, w, C]` to the same shape."""
        channels = x.shape[-1]
        shape = (self.size, self.size, 1, self.sharesets)
        kernel = self.param("kernel", torch_uniform(self.size**2), shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        kernel = jnp.tile(kernel, (1, 1, 1, channels // self.sharesets))
        y = grouped_conv2d(x, kernel, padding=self.size // 2, groups=channels)
        return norm_by_shareset(self.norm.copy(name="norm"), y, self.sharesets, train)


def norm_by_shareset(norm: BatchNorm, x: jax.Array, sharesets: int, train: bool) -> jax.Array:
    """Batch norm of `[M, h, w, C]` with one statistic for each shareset."""
    *_, width, channels = x.shape
    y = rearrange(x, "m h w (q s) -> m h (w q) s", s=sharesets)
    y = norm(y, train=train)
    return rearrange(y, "m h (w q) s -> m h w (q s)", w=width, q=channels // sharesets)


class RepMLPBlock(nn.Module):
    """A fully connected layer over the pixels of a partition, and a gate.

    Channel c is of shareset c mod S. A shareset has one matrix over the pixels of a partition, used
    for each of its channels; in training depthwise convolutions stand next to it.

    With several partitions and several channels a shareset, the result of a partition is put in
    the place of another partition and channel, exactly as the original computes it: it writes its
    rows in the order (partition, channel) and reads them as (channel, partition). No published
    network has several partitions at its own resolution.

    Attributes:
        partition: height and width of a partition; they divide those of the map.
        kernels: sizes of the depthwise convolutions, odd; () for none.
        sharesets: S; divides the channels.
        reduction: of the gate.
        norm: the batch norm to copy.
        merged: whether it is the merged form (`deploy`).
        dtype: to compute in; None: that of input and kernel.
    """

    partition: tuple[int, int]
    kernels: tuple[int, ...]
    sharesets: int
    reduction: int
    norm: BatchNorm
    merged: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to the same shape.

        Raises:
            ValueError: the partition does not divide the map, or the sharesets the channels.
        """
        (h, w), (_, height, width, channels) = self.partition, x.shape
        check_partition(height, width, self.partition, "A RepMLP block")
        check_sharesets(self.sharesets, channels)
        gate = Gate(self.reduction, self.dtype, name="gate")(x)

        partitions = rearrange(x, "n (a h) (b w) c -> (n a b) h w c", h=h, w=w)
        vectors = rearrange(partitions, "m h w (q s) -> s (m q) (h w)", s=self.sharesets)
        y = GroupedDense(h * w, use_bias=self.merged, dtype=self.dtype, name="fc3")(vectors)
        y = rearrange(y, "s (m q) (h w) -> m h w (q s)", q=channels // self.sharesets, h=h)
        if not self.merged:
            y = norm_by_shareset(self.norm.copy(name="fc3_norm"), y, self.sharesets, train)
            for size in self.kernels:
                branch = SharedDepthwise(
                    size, self.sharesets, self.norm, self.dtype, name=f"repconv{size}"
                )
                y = y + branch(partitions, train=train)
        y = _join_partitions(y, height // h, width // w, self.sharesets)
        return y * gate[:, None, None, :]


def _join_partitions(y, rows, columns, sharesets):
    """Partitions `[n rows columns, h, w, C]` to maps, in the original's order (see above)."""
    y = rearrange(y, "(n a b) h w (q s) -> n (a b q) h w s", a=rows, b=columns, s=sharesets)
    return rearrange(y, "n (q a b) h w s -> n (a h) (b w) (q s)", a=rows, b=columns)


def check_sharesets(sharesets: int, channels: int) -> None:
    """Refuses sharesets that do not divide the channels.

    Raises:
        ValueError: names both.
    """
    if sharesets < 1 or channels % sharesets:
        raise ValueError(
            f"The sharesets of a RepMLP block must divide its channels; got {sharesets} sharesets "
            f"and {channels} channels. Change model.sharesets."
        )


class FeedForward(nn.Module):
    """1x1 convolution to a wider layer, GELU, 1x1 convolution back, each with batch norm.

    Attributes:
        expansion: how much wider.
        norm: the batch norm to copy.
        dtype: to compute in; None: that of input and kernel.
    """

    expansion: int
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to the same shape."""
        channels = x.shape[-1]
        hidden = channels * self.expansion
        y = ConvNorm(hidden, 1, self.norm, dtype=self.dtype, name="fc1")(x, train=train)
        y = nn.gelu(y, approximate=False)
        return ConvNorm(channels, 1, self.norm, dtype=self.dtype, name="fc2")(y, train=train)


class Unit(nn.Module):
    """A RepMLP block and a feed-forward block, each after a batch norm and with a shortcut.

    Attributes:
        block: the RepMLP block to copy.
        ffn_expansion: of the feed-forward block.
    """

    block: RepMLPBlock
    ffn_expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to the same shape."""
        norm, dtype = self.block.norm, self.block.dtype
        y = norm.copy(name="norm1")(x, train=train)
        x = x + self.block.copy(name="repmlp")(y, train=train)
        y = norm.copy(name="norm2")(x, train=train)
        return x + FeedForward(self.ffn_expansion, norm, dtype, name="ffn")(y, train=train)
