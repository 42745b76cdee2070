"""The residual blocks of a RepMLP-ResNet (Ding et al. 2021, 2105.01883, section 4.2)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import BatchNorm, ConvNorm
from mdeq_jax.models.repmlp.module import RepMLP


class BlockSpec(NamedTuple):
    """What all blocks of a network share.

    Attributes:
        partition: of its RepMLPs; see there.
        kernels: of its RepMLPs.
        groups: of its RepMLPs.
        reduction: of its RepMLPs.
        norm: the batch norm to copy.
        merged: whether the blocks are in their merged form (`deploy`).
        dtype: to compute in; None: that of input and kernel.
    """

    partition: tuple[int, int]
    kernels: tuple[int, ...]
    groups: int
    reduction: int
    norm: BatchNorm
    merged: bool = False
    dtype: jnp.dtype | None = None

    def conv(self, features: int, size: int, name: str, stride: int = 1) -> ConvNorm:
        """A convolution with batch norm, or with a bias in the merged form."""
        return ConvNorm(
            features, size, self.norm, stride, merged=self.merged, dtype=self.dtype, name=name
        )

    def repmlp(self, features: int, name: str) -> RepMLP:
        """A RepMLP with these settings."""
        return RepMLP(
            features,
            self.partition,
            self.kernels,
            self.groups,
            self.reduction,
            self.norm,
            self.merged,
            self.dtype,
            name=name,
        )


def _residual(x, layers, spec: BlockSpec, features: int, stride: int, train: bool):
    """ReLU of the layers, with a ReLU between each two, plus the shortcut."""
    y = x
    for number, layer in enumerate(layers):
        y = layer(nn.relu(y) if number else y, train=train)
    if stride != 1 or x.shape[-1] != features:
        x = spec.conv(features, 1, "shortcut", stride)(x, train=train)
    return nn.relu(y + x)


class BaseBlock(nn.Module):
    """The bottleneck of ResNet-50: 1x1, 3x3 with the stride, 1x1.

    Attributes:
        spec: see there; no RepMLP is used.
        features: channels of the output.
        hidden: channels within.
        stride: 1 or 2.
    """

    spec: BlockSpec
    features: int
    hidden: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
        conv = self.spec.conv
        layers = (
            conv(self.hidden, 1, "conv1"),
            conv(self.hidden, 3, "conv2", self.stride),
            conv(self.features, 1, "conv3"),
        )
        return _residual(x, layers, self.spec, self.features, self.stride, train)


class LightBlock(nn.Module):
    """1x1, RepMLP, 1x1.

    Attributes:
        spec: see there.
        features: channels of the output.
        hidden: channels of the RepMLP.
    """

    spec: BlockSpec
    features: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H, W, features]`."""
        layers = (
            self.spec.conv(self.hidden, 1, "conv1"),
            self.spec.repmlp(self.hidden, "repmlp"),
            self.spec.conv(self.features, 1, "conv3"),
        )
        return _residual(x, layers, self.spec, self.features, 1, train)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, RepMLP, 3x3, 1x1; the RepMLP is narrower than what is around it.

    Attributes:
        spec: see there.
        features: channels of the output.
        hidden: channels within.
        reduction: the RepMLP has `hidden // reduction` channels.
    """

    spec: BlockSpec
    features: int
    hidden: int
    reduction: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H, W, features]`."""
        conv, narrow = self.spec.conv, self.hidden // self.reduction
        layers = (
            conv(self.hidden, 1, "conv1"),
            conv(narrow, 3, "conv2"),
            self.spec.repmlp(narrow, "repmlp"),
            conv(self.hidden, 3, "conv4"),
            conv(self.features, 1, "conv5"),
        )
        return _residual(x, layers, self.spec, self.features, 1, train)
