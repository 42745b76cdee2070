"""The parts of an MDEQ classifier outside the equilibrium: stem with injection, and head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import BatchNorm, Conv, ConvBNReLU, torch_dense
from mdeq_jax.models.mdeq.cell import Scales

BOTTLENECK_EXPANSION = 4


class Stem(nn.Module):
    """Image to input injection: `[B, H, W, 3]` to `[B, H / 2^d, W / 2^d, features]`.

    It has two or more 3x3 convolutions, of which the first d = `downsample_times` have stride 2.
    With `inject`, the 1x1 transform that the original calls stage 0 follows. The backward pass
    computes the stem again, because its activations, at the highest resolution, would stay in
    memory during both solves.
    """

    features: int
    downsample_times: int
    inject: bool
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The input injection."""

        def layers(stem, x):
            for i in range(max(2, stem.downsample_times)):
                stride = 2 if i < stem.downsample_times else 1
                x = ConvBNReLU(
                    stem.features, 3, stem.norm, stride, dtype=stem.dtype, name=f"conv{i}"
                )(x, train)
            if stem.inject:
                x = ConvBNReLU(stem.features, 1, stem.norm, dtype=stem.dtype, name="injection")(
                    x, train
                )
            return x

        return nn.remat(layers)(self, images)


class _Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, and 1x1 to four times `width`; their batch norms are not affine."""

    width: int
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, train):
        out_channels = BOTTLENECK_EXPANSION * self.width
        y = x
        for n, (features, size) in enumerate(((self.width, 1), (self.width, 3), (out_channels, 1))):
            y = Conv(features, size, dtype=self.dtype, name=f"conv{n + 1}")(y)
            y = self.norm.copy(use_affine=False, name=f"norm{n + 1}")(y, train=train)
            if n < 2:
                y = nn.relu(y)
        if x.shape[-1] != out_channels:
            x = Conv(out_channels, 1, dtype=self.dtype, name="shortcut_conv")(x)
            x = self.norm.copy(name="shortcut_norm")(x, train=train)
        return nn.relu(y + x)


class ClassificationHead(nn.Module):
    """Scales to class logits `[B, num_classes]`.

    Every resolution passes through a bottleneck. From high to low, each is downsampled and added to
    the next. A 1x1 convolution, the mean over space and a linear layer follow.
    """

    head_channels: tuple[int, ...]
    final_channels: int
    num_classes: int
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, z: Scales, *, train: bool) -> jax.Array:
        """The logits, in float32 or better."""
        y: Any = None
        for i, (z_i, width) in enumerate(zip(z, self.head_channels)):
            raised = _Bottleneck(width, self.norm, self.dtype, name=f"bottleneck{i}")(z_i, train)
            if y is not None:
                down = ConvBNReLU(
                    raised.shape[-1], 3, self.norm, 2, True, self.dtype, name=f"down{i - 1}"
                )
                raised = raised + down(y, train)
            y = raised
        y = ConvBNReLU(
            self.final_channels, 1, self.norm, use_bias=True, dtype=self.dtype, name="final"
        )(y, train)
        y = jnp.mean(y.astype(jnp.promote_types(y.dtype, jnp.float32)), axis=(1, 2))
        return torch_dense(self.final_channels, self.num_classes, name="classifier")(y)
