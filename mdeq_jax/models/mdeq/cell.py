"""The equilibrium cell of an MDEQ: residual blocks on each resolution, then fusion of all.

The parameters are a Flax module, `MDEQCell`. Calling it gives the cell's weights, which are the
kernels with their weight norm applied. The computation is the pure function
`apply_cell(spec, weights, z, x)`: a solver calls it many times on weights that are computed once.
Source: Bai, Koltun, Kolter 2020 (2006.08656), section 3.1 and figure 2.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdeq_jax.layers import (
    Affine,
    Kernel,
    conv2d,
    dropout,
    dropout_mask,
    group_norm,
    upsample_nearest,
)

Scales = tuple[jax.Array, ...]  # [B, H / 2^i, W / 2^i, channels[i]], highest resolution first


class CellSpec(NamedTuple):
    """The static settings of a cell. Tuples have one entry per resolution, highest first.

    Attributes:
        channels: widths.
        num_blocks: numbers of residual blocks.
        big_kernels: how many of the two convolutions of every block are 5x5, the first ones.
        expansion: the first convolution of a block has `expansion` times the width.
        num_groups: groups of the group norms (half as many after the fusion).
        weight_norm: whether blocks and post-fusion convolutions are weight-normalised.
        fuse_weight_norm: whether fusion convolutions are weight-normalised too (TorchDEQ).
        block_gn_affine: whether the group norms of the blocks have scale and bias.
        fuse_gn_affine: the same for those of the fusion.
        post_gn_affine: the same for those after the fusion.
        dropout: rate of the variational dropout in the blocks, if there are masks.
        dtype: type of the computation; None: that of weights and state.
        pallas: whether group norms use Pallas kernels, see `layers.group_norm`.
    """

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    big_kernels: tuple[int, ...]
    expansion: int
    num_groups: int
    weight_norm: bool
    fuse_weight_norm: bool
    block_gn_affine: bool
    fuse_gn_affine: bool
    post_gn_affine: bool
    dropout: float
    dtype: jnp.dtype | None = None
    pallas: bool | None = False

    @property
    def num_scales(self) -> int:
        """Number of resolutions."""
        return len(self.channels)


class CellInput(NamedTuple):
    """The input injection of a cell.

    Attributes:
        injection: `[B, H, W, channels[0]]`, added in the first block of the highest resolution.
        masks: entries that dropout keeps, a bool `[B, H_i, W_i, channels[i]]` for each block of
            each resolution; None without dropout.
    """

    injection: jax.Array
    masks: tuple[tuple[jax.Array, ...], ...] | None = None


class _ConvNorm(nn.Module):
    """Weights of a convolution and the group norm after it."""

    size: int
    in_channels: int
    out_channels: int
    weight_norm: bool
    affine: bool

    @nn.compact
    def __call__(self):
        shape = (self.size, self.size, self.in_channels, self.out_channels)
        kernel = Kernel(shape, self.weight_norm, name="conv")()
        return {"kernel": kernel, "norm": Affine(self.out_channels, self.affine, name="norm")()}


class _Block(nn.Module):
    """Weights of one residual block."""

    channels: int
    spec: CellSpec
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self):
        c, hidden, spec = self.channels, self.channels * self.spec.expansion, self.spec
        first, second = ((size, size) for size in self.sizes)
        return {
            "conv1": Kernel((*first, c, hidden), spec.weight_norm, name="conv1")(),
            "norm1": Affine(hidden, spec.block_gn_affine, name="norm1")(),
            "conv2": Kernel((*second, hidden, c), spec.weight_norm, name="conv2")(),
            "norm2": Affine(c, spec.block_gn_affine, name="norm2")(),
            "norm3": Affine(c, spec.block_gn_affine, name="norm3")(),
        }


class MDEQCell(nn.Module):
    """The parameters of the cell; calling it gives the weights that `apply_cell` takes."""

    spec: CellSpec

    @nn.compact
    def __call__(self) -> dict:
        """The weights, by layer: kernels and the scale and bias of the norms."""
        spec = self.spec
        weights = {}
        for i, channels in enumerate(spec.channels):
            sizes = tuple(5 if n < spec.big_kernels[i] else 3 for n in range(2))
            for b in range(spec.num_blocks[i]):
                name = f"branch{i}_block{b}"
                weights[name] = _Block(channels, spec, sizes, name=name)()
        if spec.num_scales > 1:
            for name, size, c_in, c_out in _fusion_layers(spec.channels):
                weights[name] = _ConvNorm(
                    size, c_in, c_out, spec.fuse_weight_norm, spec.fuse_gn_affine, name=name
                )()
            for i, channels in enumerate(spec.channels):
                weights[f"post{i}"] = _ConvNorm(
                    1, channels, channels, spec.weight_norm, spec.post_gn_affine, name=f"post{i}"
                )()
        if spec.dtype is not None:
            weights = {
                name: {
                    key: value.astype(spec.dtype) if getattr(value, "ndim", 0) == 4 else value
                    for key, value in layer.items()
                }
                for name, layer in weights.items()
            }
        return weights


def _fusion_layers(channels: tuple[int, ...]):
    """Names, kernel sizes and widths of the convolutions from scale j into scale i."""
    for i, to_width in enumerate(channels):
        for j, from_width in enumerate(channels):
            if j > i:
                yield f"fuse{i}_{j}", 1, from_width, to_width
            for k in range(i - j):
                last = k == i - j - 1
                yield f"fuse{i}_{j}_{k}", 3, from_width, to_width if last else from_width


def make_masks(keys: jax.Array, spec: CellSpec, z: Scales):
    """Dropout masks for `CellInput`, from one random key a sample and the shapes of the state."""
    split = jax.vmap(lambda key: jax.random.split(key, sum(spec.num_blocks)))(keys)
    block_keys = iter(split.swapaxes(0, 1))  # [blocks, B]
    return tuple(
        tuple(dropout_mask(next(block_keys), spec.dropout, z_i.shape) for _ in range(n))
        for n, z_i in zip(spec.num_blocks, z)
    )


def _block(spec, weights, z, injection, mask):
    norm = partial(group_norm, num_groups=spec.num_groups, pallas=spec.pallas)
    y = conv2d(z, weights["conv1"])  # [B, H_i, W_i, expansion c]
    y = norm(y, affine=weights["norm1"], relu=True)
    y = conv2d(y, weights["conv2"])  # [B, H_i, W_i, c]
    if mask is not None:
        y = dropout(y, mask, spec.dropout)
    if injection is not None:
        y = y + injection
    y = checkpoint_name(y, "norm2_input")  # saved for backward passes instead of the convolution
    y = norm(y, affine=weights["norm2"], residual=z, relu=True)
    return norm(y, affine=weights["norm3"])


def _fuse(spec, weights, y, i, j):
    """The contribution of scale j to scale i."""
    norm = partial(group_norm, num_groups=spec.num_groups, pallas=spec.pallas)
    if i == j:
        return y
    if j > i:
        layer = weights[f"fuse{i}_{j}"]
        y = norm(conv2d(y, layer["kernel"]), affine=layer["norm"])
        return upsample_nearest(y, 2 ** (j - i))
    for k in range(i - j):
        layer = weights[f"fuse{i}_{j}_{k}"]
        y = conv2d(y, layer["kernel"], stride=2)
        y = norm(y, affine=layer["norm"], relu=k < i - j - 1)
    return y


@partial(jax.jit, static_argnums=0)
def apply_cell(spec: CellSpec, weights: dict, z: Scales, x: CellInput) -> Scales:
    """One application of the cell, z <- f(z; x).

    Args:
        spec: static settings of the cell.
        weights: output of `MDEQCell`.
        z: state, one `[B, H / 2^i, W / 2^i, channels[i]]` a resolution.
        x: injection and dropout masks.

    Returns:
        The new state, in the shapes and types of `z`.
    """
    dtypes = [z_i.dtype for z_i in z]
    injection = x.injection
    if spec.dtype is not None:
        z = tuple(z_i.astype(spec.dtype) for z_i in z)
        injection = injection.astype(spec.dtype)

    branches = []
    for i, y in enumerate(z):
        for b in range(spec.num_blocks[i]):
            mask = None if x.masks is None else x.masks[i][b]
            add = injection if i == b == 0 else None
            y = _block(spec, weights[f"branch{i}_block{b}"], y, add, mask)
        branches.append(y)
    if spec.num_scales > 1:
        fused = []
        for i in range(spec.num_scales):
            y = sum(_fuse(spec, weights, y, i, j) for j, y in enumerate(branches))
            layer = weights[f"post{i}"]
            y = conv2d(nn.relu(y), layer["kernel"])
            fused.append(group_norm(y, spec.num_groups // 2, layer["norm"], pallas=spec.pallas))
        branches = fused
    return tuple(y.astype(dtype) for y, dtype in zip(branches, dtypes))
