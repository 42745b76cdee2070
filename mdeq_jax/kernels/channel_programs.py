"""Programs of Pallas kernels that each work on some groups of channels of one sample.

A program goes through its channels in blocks of pixels.
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


class Block(NamedTuple):
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


def choose_block(num_pixels: int, num_groups: int, size: int) -> Block:
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
    return Block(size, groups, lanes, pixels, pl.cdiv(num_pixels, pixels))


class Program:
    """Loads and stores of one program, on arrays `[B, H W, C]` and smaller ones."""

    def __init__(self, block: Block, num_pixels: int, dtype):
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

    def read_rows(self, ref, count: int):
        """Reads the first rows of an array `[B, rows, C]`, `[lanes]` each."""
        return [self.read_channels(ref, self.sample, jnp.int32(i)) for i in range(count)]

    def write_rows(self, ref, rows):
        """Writes `[lanes]` or `[1]` each to the rows of an array `[B, rows, C]`."""
        for i, row in enumerate(rows):
            block = ref.at[self.sample, jnp.int32(i), self.channels]
            row = jnp.broadcast_to(row, (self.block.lanes,))
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
        """The sum of `[lanes]` over each group, for all its channels; `[1]` for a single group."""
        if self.block.groups == 1:
            return jnp.sum(x)[None]
        group = lax.iota(jnp.int32, self.block.lanes) // self.block.size
        return jnp.sum(jnp.where(group[:, None] == group[None], x[None], 0), 1)

    def over_blocks(self, step: Callable, carry):
        """Runs `carry = step(i, carry)` for each block, without a loop if there is only one."""
        if self.block.times == 1:
            return step(0, carry)
        return lax.fori_loop(jnp.int32(0), jnp.int32(self.block.times), step, carry)


class Call:
    """One launch of a kernel, which sees `[B, H, W, C]` as `[B, H W, C]`.

    Attributes:
        shape: `B, H W, C`.
        count: numbers in a group of a sample.
        dtype: of the arithmetic.
        program: makes the `Program`, within a kernel.
        grid: numbers of programs.
    """

    def __init__(self, x: jax.Array, num_groups: int):
        batch, height, width, channels = x.shape
        size, pixels = channels // num_groups, height * width
        self.shape = batch, pixels, channels
        self.count = pixels * size
        self.dtype = jnp.promote_types(x.dtype, jnp.float32)
        block = choose_block(pixels, num_groups, size)
        self.program = partial(Program, block, pixels, self.dtype)
        self.grid = batch, num_groups // block.groups

    def join(self, tree):
        """Joins height and width."""
        return jax.tree.map(lambda x: x.reshape(self.shape) if x.ndim == 4 else x, tree)

    def like(self, x: jax.Array) -> jax.ShapeDtypeStruct:
        """The shape of a result in the type of `x`."""
        return jax.ShapeDtypeStruct(self.shape, x.dtype)

    def __call__(self, kernel: Callable, outputs, *inputs):
        """Runs `kernel(*refs of inputs, *refs of outputs)` for every program; see `launch`."""
        return launch(kernel, self.grid, outputs, *inputs, num_warps=NUM_WARPS)

    @property
    def num_programs(self) -> int:
        """Programs that are launched."""
        return math.prod(self.grid)
