"""The slots of a stream, and how samples enter and leave them.

Loops over single rows copy no more than these. A gather and a scatter of all rows take longer on
CPUs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.states import Loop
from mdeq_jax.solvers.stopping import ACTIVE

PyTree = Any


class Slots(NamedTuple):
    """The samples that are being solved, S of them.

    Attributes:
        nfe: int32 scalar, evaluations of f on the slots so far.
        loop: S loops of one sample each: the leaves are `[S, ...]`, with a batch of 1 after S.
        first_abs, first_rel: `[S, 1]` residuals of the starts.
        fresh: `[S]` bool, whether the start is not evaluated yet.
        usable: `[S]` bool, whether the start was finite.
        x: input of each sample, leaves `[S, ...]`.
        source: `[S]` int32, where the sample came from; see `stream.advance`.
    """

    nfe: jax.Array
    loop: Loop
    first_abs: jax.Array
    first_rel: jax.Array
    fresh: jax.Array
    usable: jax.Array
    x: PyTree
    source: jax.Array

    @property
    def active(self) -> jax.Array:
        """`[S]` bool, the slots whose samples are not finished."""
        return self.fresh | (self.loop.status[:, 0] == ACTIVE)


class Waiting(NamedTuple):
    """Inputs that wait for a slot, B of them.

    Attributes:
        x: inputs, leaves `[B, ...]`.
        z0: `[B, D]` starts, zero where they are not finite.
        usable: `[B]` bool, whether they are finite.
    """

    x: PyTree
    z0: jax.Array
    usable: jax.Array


class Left(NamedTuple):
    """Samples that have left their slots, in any order.

    Attributes:
        x: their inputs, leaves `[B, ...]`.
        solution: `nfe` is `[B]`, the evaluations of each sample.
        source: `[B]` int32, as in `Slots`.
    """

    x: PyTree
    solution: Solution
    source: jax.Array


def untaken(waiting: Waiting, max_steps: int, first_source: int) -> Left:
    """The rows of inputs that no slot has taken."""
    count = waiting.z0.shape[0]
    residual = jnp.zeros(count, jnp.promote_types(waiting.z0.dtype, jnp.float32))
    trace = jnp.full((max_steps, count), jnp.nan, residual.dtype)
    whole = jnp.zeros(count, jnp.int32)
    solution = Solution(waiting.z0, residual, residual, whole, whole, whole, trace, trace)
    return Left(waiting.x, solution, first_source + jnp.arange(count, dtype=jnp.int32))


def exchange(slots: Slots, left: Left, waiting: Waiting, blank, start, stop) -> tuple[Slots, Left]:
    """Lets the inputs from row `start` to `stop` replace finished samples.

    In two loops, because XLA copies whole arrays for one that reads and writes the slots.

    Args:
        slots: with enough finished samples.
        left: the rows so far; those from `start` to `stop` receive the finished samples.
        waiting: the inputs.
        blank: the algorithm's state before the first step of one sample.
        start: first row, an int32 scalar.
        stop: row after the last one.
    """
    order = jnp.argsort(slots.active, stable=True).astype(jnp.int32)
    left = lax.fori_loop(
        start, stop, lambda row, left: leave(slots, left, order[row - start], row), left
    )

    def enter(row, slots):
        slot, loop = order[row - start], slots.loop
        z0 = _get(waiting.z0, row)[None]
        loop = loop._replace(
            step=loop.step.at[slot].set(0),
            z=_put(loop.z, z0, slot),
            fz=_put(loop.fz, z0, slot),
            gz=_put(loop.gz, jnp.zeros_like(loop.gz[0]), slot),
            algorithm=jax.tree.map(lambda all, one: _put(all, one, slot), loop.algorithm, blank),
        )
        return slots._replace(
            loop=loop,
            fresh=slots.fresh.at[slot].set(True),
            usable=_put(slots.usable, _get(waiting.usable, row), slot),
            x=jax.tree.map(lambda x, one: _put(x, _get(one, row), slot), slots.x, waiting.x),
            source=slots.source.at[slot].set(order.size + row),
        )

    return lax.fori_loop(start, stop, enter, slots), left


def drain(slots: Slots, left: Left, stop: jax.Array) -> tuple[Slots, Left]:
    """Hands out the samples of the slots before `stop`, which change places with untaken rows."""
    left = lax.fori_loop(
        jnp.int32(0), stop, lambda slot, left: leave(slots, left, slot, slot), left
    )
    index = jnp.arange(slots.source.size, dtype=jnp.int32)
    source = jnp.where(index < stop, slots.source.size + index, slots.source)
    return slots._replace(source=source), left


def leave(slots: Slots, left: Left, slot: jax.Array, row: jax.Array) -> Left:
    """Writes the sample of a slot into a row."""
    loop = jax.tree.map(lambda x: _get(x, slot), slots.loop._replace(algorithm=()))
    solution = left.solution
    solution = solution._replace(
        z=_put(solution.z, loop.best[0], row),
        residual=_put(solution.residual, loop.best_abs[0], row),
        rel_residual=_put(solution.rel_residual, loop.best_rel[0], row),
        steps=_put(solution.steps, loop.best_step[0], row),
        nfe=_put(solution.nfe, loop.step + 1, row),
        status=_put(solution.status, loop.status[0], row),
        abs_trace=_put(solution.abs_trace, loop.abs_trace[:, 0], row, axis=1),
        rel_trace=_put(solution.rel_trace, loop.rel_trace[:, 0], row, axis=1),
    )
    return Left(
        jax.tree.map(lambda rows, inside: _put(rows, _get(inside, slot), row), left.x, slots.x),
        solution,
        _put(left.source, _get(slots.source, slot), row),
    )


def _get(array: jax.Array, index) -> jax.Array:
    return lax.dynamic_index_in_dim(array, index, 0, keepdims=False)


def _put(array: jax.Array, part: jax.Array, index, axis: int = 0) -> jax.Array:
    return lax.dynamic_update_index_in_dim(array, part, index, axis)
