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

# Measured on an H200 (docs/performance_log.md).
BLOCK = 4096  # numbers of an array that a program holds at a time
MIN_CHANNELS = 32  # of a program, if there are as many: whole sectors of memory
MAX_SHARED_LANES = 64  # lanes of a program with several groups
VECTOR = 4  # numbers that a thread loads at once
NUM_WARPS = 8
MIN_PROGRAMS = 64  # about half a program for each multiprocessor of an H200


class _Block(NamedTuple):
    """How a program goes through its channels of a sample `[H W, C]`.

    Attributes:
        size: channels of a group.
        groups: groups of the program.
        lanes: its channels, rounded up to a power of two for Triton.
        pixels: pixels in a block, a power of two.
        times: number of blocks that cover all pixels.
    """

    size: int
    groups: int
    lanes: int
    pixels: int
    times: int

    @property
    def channels(self) -> int:
        """Channels of the program."""
        return self.size * self.groups


def _block(num_pixels: int, num_groups: int, size: int) -> _Block:
    """Takes groups until their channels fill sectors of memory and whole vectors, if they can."""
    groups = 1
    while (
        (groups * size < MIN_CHANNELS or groups * size % VECTOR)
        and num_groups % (2 * groups) == 0
        and 2 * groups * size <= MAX_SHARED_LANES
    ):
        groups *= 2
    lanes = pl.next_power_of_2(groups * size)
    pixels = min(pl.next_power_of_2(num_pixels), max(BLOCK // lanes, 1))
    return _Block(size, groups, lanes, pixels, pl.cdiv(num_pixels, pixels))


class _Program:
    """Loads and stores of one program, on arrays `[B, H W, C]` and smaller ones."""

    def __init__(self, block: _Block, num_pixels: int, dtype):
        self.block, self.num_pixels, self.dtype = block, num_pixels, dtype
        self.sample = pl.program_id(0)
        self.channels = pl.ds(pl.program_id(1) * block.channels, block.lanes)
        self.is_channel = lax.iota(jnp.int32, block.lanes) < block.channels
        self.held = {}  # blocks read so far, if one block covers all pixels

    def at(self, ref, i):
        """Returns the i-th block, and a mask of its part within the array."""
        start, shape = jnp.int32(i * self.block.pixels), (self.block.pixels, self.block.lanes)
        index = self.sample, pl.ds(start, self.block.pixels), self.channels
        is_pixel = start + lax.broadcasted_iota(jnp.int32, shape, 0) < self.num_pixels
        return ref.at[index], is_pixel & self.is_channel[None]

    def read(self, ref, i):
        """Reads the i-th block, `[pixels, lanes]`, zero beyond the array."""
        if id(ref) in self.held:
            return self.held[id(ref)]
        block, mask = self.at(ref, i)
        values = triton().load(block, mask=mask, other=0).astype(self.dtype)
        if self.block.times == 1:
            self.held[id(ref)] = values
        return values

    def write(self, ref, i, values):
        """Writes the part of `[pixels, lanes]` within the array."""
        block, mask = self.at(ref, i)
        triton().store(block, values.astype(ref.dtype), mask=mask)

    def read_channels(self, ref, *index):
        """Reads `[lanes]` from an array `[..., C]`, zero beyond the program's channels."""
        block = ref.at[*index, self.channels]
        return triton().load(block, mask=self.is_channel, other=0).astype(self.dtype)

    def write_rows(self, ref, rows):
        """Writes `[lanes]` each to the rows of an array `[B, rows, C]`."""
        for i, row in enumerate(rows):
            block = ref.at[self.sample, jnp.int32(i), self.channels]
            triton().store(block, row, mask=self.is_channel)

    def read_affine(self, refs):
        """Reads scale and bias as `[lanes]`; 1 and 0 if None."""
        if refs is None:
            return jnp.ones(1, self.dtype), jnp.zeros(1, self.dtype)
        return tuple(self.read_channels(refs[name]) for name in ("scale", "bias"))

    def sums(self, read: Callable):
        """Sums over all pixels of both arrays `[pixels, lanes]` of `read(i)`: `[lanes]` each.

        Every thread adds up its own numbers, so only one reduction over the program is left.
        """
        zero = jnp.zeros((self.block.pixels, self.block.lanes), self.dtype)

        def add(i, sums):
            return tuple(s + array for s, array in zip(sums, read(i)))

        return tuple(jnp.sum(s, 0) for s in self.over_blocks(add, (zero, zero)))

    def over_groups(self, x):
        """The sum of `[lanes]` over each group, for all its channels."""
        if self.block.groups == 1:
            return jnp.sum(x)[None]
        group = lax.iota(jnp.int32, self.block.lanes) // self.block.size
        return jnp.sum(jnp.where(group[:, None] == group[None], x[None], 0), 1)

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
        `[B, H, W, C]` in the type of `x`, and the statistics for `pull_back`: `[B, 2, C]`, mean and
        1 / standard deviation of each channel's group.
    """
    call = _Call(x, num_groups)
    statistics = jax.ShapeDtypeStruct((x.shape[0], 2, x.shape[3]), call.dtype)
    y, statistics = call(
        partial(_normalize, call.program, relu, call.count, eps),
        (call.like(x), statistics),
        *map(call.join, (x, affine, residual)),
    )
    return y.reshape(x.shape), statistics


def _normalize(new_program, relu, count, eps, x_ref, affine_refs, residual_ref, y_ref, stats_ref):
    program = new_program()

    def with_square(i):
        x = program.read(x_ref, i)
        return x, x * x

    sums = program.sums(with_square)
    mean, mean_square = (program.over_groups(s) / count for s in sums)
    rstd = lax.rsqrt(_relu(mean_square - mean * mean) + eps)
    lanes = (program.block.lanes,)
    program.write_rows(stats_ref, (jnp.broadcast_to(s, lanes) for s in (mean, rstd)))
    multiplier, shift = _multiplier_and_shift(mean, rstd, *program.read_affine(affine_refs))

    def write(i, carry):
        y = program.read(x_ref, i) * multiplier[None] + shift[None]
        if residual_ref is not None:
            y += program.read(residual_ref, i)
        program.write(y_ref, i, _relu(y) if relu else y)
        return carry

    program.over_blocks(write, 0)


def _multiplier_and_shift(mean, rstd, scale, bias):
    """The factors by channel with which the norm of x is x * multiplier + shift."""
    multiplier = rstd * scale
    return multiplier, bias - mean * multiplier


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
        statistics: `[B, 2, C]` that it returned.
        num_groups: its number of groups.
        relu: whether it applied a ReLU.

    Returns:
        The products with respect to x, affine and residual, each like its argument.
    """
    call = _Call(x, num_groups)
    sums = jax.ShapeDtypeStruct((x.shape[0], 2, x.shape[3]), call.dtype)
    d_residual_like = None if residual is None or not relu else call.like(residual)
    dx, sums, d_residual = call(
        partial(_pull_back, call.program, relu, call.count),
        (
            call.like(x),
            None if affine is None else sums,
            d_residual_like,
        ),
        *map(call.join, (u, x, affine, residual, statistics)),
    )
    d_affine = None
    if affine is not None:
        d_affine = {
            name: jnp.sum(sums[:, row], 0).astype(affine[name].dtype)
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
    rows = (program.read_channels(stats_ref, program.sample, jnp.int32(row)) for row in (0, 1))
    mean, rstd = rows
    scale, bias = program.read_affine(affine_refs)
    multiplier, shift = _multiplier_and_shift(mean, rstd, scale, bias)

    def read(i):
        """The normalised x, and u with zeros where the ReLU is zero."""
        x, u = program.read(x_ref, i), program.read(u_ref, i)
        if relu:
            y = x * multiplier[None] + shift[None]
            if residual_ref is not None:
                y += program.read(residual_ref, i)
            u = jnp.where(y > 0, u, 0)
        return (x - mean[None]) * rstd[None], u

    def with_product(i):
        normalized, u = read(i)
        return u, u * normalized

    sums = program.sums(with_product)
    if sums_ref is not None:
        program.write_rows(sums_ref, sums)
    mean_u, mean_u_normalized = (program.over_groups(s * scale) / count for s in sums)

    def write(i, carry):
        normalized, u = read(i)
        dx = u * scale[None] - mean_u[None] - normalized * mean_u_normalized[None]
        program.write(dx_ref, i, rstd[None] * dx)
        if d_residual_ref is not None:
            program.write(d_residual_ref, i, u)
        return carry

    program.over_blocks(write, 0)


def num_programs(x: jax.Array, num_groups: int) -> int:
    """Programs that a group norm of `x`, `[B, H, W, C]`, launches."""
    return math.prod(_Call(x, num_groups).grid)


class _Call:
    """The shapes of one call. A kernel sees `[B, H, W, C]` as `[B, H W, C]`."""

    def __init__(self, x: jax.Array, num_groups: int):
        batch, height, width, channels = x.shape
        size, pixels = channels // num_groups, height * width
        self.shape = batch, pixels, channels
        self.count = pixels * size
        self.dtype = jnp.promote_types(x.dtype, jnp.float32)
        block = _block(pixels, num_groups, size)
        self.program = partial(_Program, block, pixels, self.dtype)
        self.grid = batch, num_groups // block.groups

    def join(self, tree):
        """Joins height and width."""
        return jax.tree.map(lambda x: x.reshape(self.shape) if x.ndim == 4 else x, tree)

    def like(self, x: jax.Array) -> jax.ShapeDtypeStruct:
        """The shape of a result in the type of `x`."""
        return jax.ShapeDtypeStruct(self.shape, x.dtype)

    def __call__(self, kernel: Callable, outputs, *inputs):
        return launch(kernel, self.grid, outputs, *inputs, num_warps=NUM_WARPS)
