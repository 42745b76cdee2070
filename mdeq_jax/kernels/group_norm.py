"""Group norm with residual and ReLU, and its pullback, each in one Pallas kernel.

A program works on some groups of one sample. It reads them for their sums, reads them again (from
the caches, or not at all if they fit into one block) and writes. XLA takes two to four kernels for
this. Arithmetic is in float32 or better. `jnp.maximum` is avoided: Pallas on GPUs drops NaN in it,
and a ReLU would hide a sample that has diverged.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mdeq_jax.kernels.launch import launch, triton

BLOCK = 4096  # numbers of an array that a program holds at a time
MIN_CHANNELS = 16  # of a program, if there are as many: whole sectors of memory
NUM_WARPS = 8


class _Block(NamedTuple):
    """How a program goes through a sample `[H W, groups, size]`, in powers of two for Triton.

    Attributes:
        pixels: pixels in a block.
        groups: groups of a program.
        lanes: channels of a group, rounded up.
        times: number of blocks that cover all pixels.
    """

    pixels: int
    groups: int
    lanes: int
    times: int


def _block(num_pixels: int, num_groups: int, size: int) -> _Block:
    lanes, groups = pl.next_power_of_2(size), 1
    while groups * lanes < MIN_CHANNELS and num_groups % (2 * groups) == 0:
        groups *= 2
    pixels = min(pl.next_power_of_2(num_pixels), max(BLOCK // (groups * lanes), 1))
    return _Block(pixels, groups, lanes, pl.cdiv(num_pixels, pixels))


class _Program:
    """Loads and stores of one program, on arrays `[B, H W, groups, size]` and smaller ones."""

    def __init__(self, block: _Block, num_pixels: int, size: int, dtype):
        self.block, self.num_pixels, self.dtype = block, num_pixels, dtype
        self.sample = pl.program_id(0)
        self.groups = pl.ds(pl.program_id(1) * block.groups, block.groups)
        # From a traced zero: Pallas refuses a constant start for channels beyond the last.
        self.lanes = pl.ds(0 * self.sample, block.lanes)
        self.is_channel = lax.broadcasted_iota(jnp.int32, (block.groups, block.lanes), 1) < size
        self.held = {}  # blocks read so far, if one block covers all pixels

    def at(self, ref, i):
        """Returns the i-th block, and a mask of its part within the array."""
        start = jnp.int32(i * self.block.pixels)
        index = self.sample, pl.ds(start, self.block.pixels), self.groups, self.lanes
        shape = self.block.pixels, self.block.groups, self.block.lanes
        is_pixel = start + lax.broadcasted_iota(jnp.int32, shape, 0) < self.num_pixels
        return ref.at[index], is_pixel & self.is_channel[None]

    def read(self, ref, i):
        """Reads the i-th block, `[pixels, groups, lanes]`, zero beyond the array."""
        if id(ref) in self.held:
            return self.held[id(ref)]
        block, mask = self.at(ref, i)
        values = triton().load(block, mask=mask, other=0).astype(self.dtype)
        if self.block.times == 1:
            self.held[id(ref)] = values
        return values

    def write(self, ref, i, values):
        """Writes the part of `[pixels, groups, lanes]` within the array."""
        block, mask = self.at(ref, i)
        triton().store(block, values.astype(ref.dtype), mask=mask)

    def read_affine(self, refs):
        """Reads scale and bias `[groups, size]` as `[groups, lanes]`; 1 and 0 if None."""
        if refs is None:
            return jnp.ones((1, 1), self.dtype), jnp.zeros((1, 1), self.dtype)
        blocks = (refs[name].at[self.groups, self.lanes] for name in ("scale", "bias"))
        load = partial(triton().load, mask=self.is_channel, other=0)
        return tuple(load(block).astype(self.dtype) for block in blocks)

    def write_channels(self, ref, row: int, values):
        """Writes `[groups, lanes]` to row `row` of an array `[B, rows, groups, size]`."""
        block = ref.at[self.sample, jnp.int32(row), self.groups, self.lanes]
        triton().store(block, values, mask=self.is_channel)

    def over_blocks(self, step: Callable, carry):
        """Runs `carry = step(i, carry)` for each block, without a loop if there is only one."""
        if self.block.times == 1:
            return step(0, carry)
        return lax.fori_loop(jnp.int32(0), jnp.int32(self.block.times), step, carry)


def normalize(
    x: jax.Array,
    affine: dict | None,
    residual: jax.Array | None,
    *,
    num_groups: int,
    relu: bool,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """The group norm of `x`, plus `residual`, with a ReLU after that.

    Args:
        x: `[B, H, W, C]`.
        affine: `{"scale": [C], "bias": [C]}`, or None.
        residual: `[B, H, W, C]`, or None.
        num_groups: groups of consecutive channels.
        relu: whether there is a ReLU.
        eps: added to the variance.

    Returns:
        `[B, H, W, C]` in the type of `x`, and the statistics for `pull_back`: `[B, 2, groups]`,
        mean and 1 / standard deviation.
    """
    call = _Call(x, num_groups)
    statistics = jax.ShapeDtypeStruct((x.shape[0], 2, num_groups), call.dtype)
    y, statistics = call(
        partial(_normalize, call.program, relu, call.count, eps),
        (call.like(x), statistics),
        *map(call.split, (x, affine, residual)),
    )
    return y.reshape(x.shape), statistics


def _normalize(new_program, relu, count, eps, x_ref, affine_refs, residual_ref, y_ref, stats_ref):
    program = new_program()

    def add_sums(i, sums):
        x = program.read(x_ref, i)
        return tuple(s + jnp.sum(jnp.sum(a, 2), 0) for s, a in zip(sums, (x, x * x)))

    zero = jnp.zeros(program.block.groups, program.dtype)
    mean, mean_square = (s / count for s in program.over_blocks(add_sums, (zero, zero)))
    rstd = lax.rsqrt(_relu(mean_square - mean * mean) + eps)
    for row, statistic in enumerate((mean, rstd)):
        stats_ref[program.sample, jnp.int32(row), program.groups] = statistic
    multiplier, shift = _multiplier_and_shift(mean, rstd, *program.read_affine(affine_refs))

    def write(i, carry):
        y = program.read(x_ref, i) * multiplier[None] + shift[None]
        if residual_ref is not None:
            y += program.read(residual_ref, i)
        program.write(y_ref, i, _relu(y) if relu else y)
        return carry

    program.over_blocks(write, 0)


def _multiplier_and_shift(mean, rstd, scale, bias):
    """The `[groups, lanes]` factors with which the norm of x is x * multiplier + shift."""
    multiplier = rstd[:, None] * scale
    return multiplier, bias - mean[:, None] * multiplier


def _relu(x):
    return jnp.where(x < 0, 0, x)  # NaN stays NaN


def pull_back(
    u: jax.Array,
    x: jax.Array,
    affine: dict | None,
    residual: jax.Array | None,
    statistics: jax.Array,
    *,
    num_groups: int,
    relu: bool,
) -> tuple[jax.Array, dict | None, jax.Array | None]:
    """u^T times the Jacobian of `normalize` with respect to (x, affine, residual).

    Args:
        u: `[B, H, W, C]`.
        x: `[B, H, W, C]`, the input of `normalize`.
        affine: its scale and bias, or None.
        residual: `[B, H, W, C]` that it added, or None.
        statistics: `[B, 2, groups]` that it returned.
        num_groups: its number of groups.
        relu: whether it applied a ReLU.

    Returns:
        The products with respect to x, affine and residual, each like its argument.
    """
    call = _Call(x, num_groups)
    sums = jax.ShapeDtypeStruct((x.shape[0], 2, *call.shape[2:]), call.dtype)
    d_residual_like = None if residual is None or not relu else call.like(residual)
    dx, sums, d_residual = call(
        partial(_pull_back, call.program, relu, call.count),
        (
            call.like(x),
            None if affine is None else sums,
            d_residual_like,
        ),
        *map(call.split, (u, x, affine, residual, statistics)),
    )
    d_affine = None
    if affine is not None:
        d_affine = {
            name: jnp.sum(sums[:, row], 0).reshape(-1).astype(affine[name].dtype)
            for row, name in enumerate(("bias", "scale"))
        }
    if d_residual_like is not None:
        d_residual = d_residual.reshape(x.shape)
    elif residual is not None:
        d_residual = u.astype(residual.dtype)
    return dx.reshape(x.shape), d_affine, d_residual


def _pull_back(new_program, relu, count, *refs):
    u_ref, x_ref, affine_refs, residual_ref, stats_ref, dx_ref, sums_ref, d_residual_ref = refs
    program = new_program()
    mean, rstd = (stats_ref[program.sample, jnp.int32(row), program.groups] for row in (0, 1))
    scale, bias = program.read_affine(affine_refs)
    multiplier, shift = _multiplier_and_shift(mean, rstd, scale, bias)
    mean, rstd = mean[None, :, None], rstd[None, :, None]

    def read(i):
        """The normalised x, and u with zeros where the ReLU is zero."""
        x, u = program.read(x_ref, i), program.read(u_ref, i)
        if relu:
            y = x * multiplier[None] + shift[None]
            if residual_ref is not None:
                y += program.read(residual_ref, i)
            u = jnp.where(y > 0, u, 0)
        return (x - mean) * rstd, u

    def add_sums(i, sums):
        normalized, u = read(i)
        return tuple(s + jnp.sum(a, 0) for s, a in zip(sums, (u, u * normalized)))

    zero = jnp.zeros((program.block.groups, program.block.lanes), program.dtype)
    sums = program.over_blocks(add_sums, (zero, zero))
    if sums_ref is not None:
        for row, total in enumerate(sums):
            program.write_channels(sums_ref, row, total)
    mean_u, mean_u_normalized = ((jnp.sum(s * scale, 1) / count)[None, :, None] for s in sums)

    def write(i, carry):
        normalized, u = read(i)
        dx = rstd * (u * scale[None] - mean_u - normalized * mean_u_normalized)
        program.write(dx_ref, i, dx)
        if d_residual_ref is not None:
            program.write(d_residual_ref, i, u)
        return carry

    program.over_blocks(write, 0)


def num_programs(x: jax.Array, num_groups: int) -> int:
    """Programs that a group norm of `x`, `[B, H, W, C]`, launches."""
    return math.prod(_Call(x, num_groups).grid)


class _Call:
    """The shapes of one call. A kernel sees `[B, H, W, C]` as `[B, H W, groups, size]`."""

    def __init__(self, x: jax.Array, num_groups: int):
        batch, height, width, channels = x.shape
        self.shape = batch, height * width, num_groups, channels // num_groups
        self.count = height * width * self.shape[3]
        self.dtype = jnp.promote_types(x.dtype, jnp.float32)
        block = _block(*self.shape[1:])
        self.program = partial(_Program, block, self.shape[1], self.shape[3], self.dtype)
        self.grid = batch, num_groups // block.groups

    def split(self, tree):
        """Splits channels into groups and joins height and width; keeps statistics as they are."""
        shapes = {4: self.shape, 1: self.shape[2:]}
        return jax.tree.map(lambda x: x.reshape(shapes.get(x.ndim, x.shape)), tree)

    def like(self, x: jax.Array) -> jax.ShapeDtypeStruct:
        """The shape of a result in the type of `x`."""
        return jax.ShapeDtypeStruct(self.shape, x.dtype)

    def __call__(self, kernel: Callable, outputs, *inputs):
        return launch(kernel, self.grid, outputs, *inputs, num_warps=NUM_WARPS)
