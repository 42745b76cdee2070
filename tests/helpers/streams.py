"""Every sample of an array through the slots of a stream."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.solvers import Solution, stream


def through_slots(f, f_solver, x, z0, *, slots, rows, step_budget=None, **options):
    """The solution of each sample, in the order of the inputs, and the evaluations of f.

    Args:
        f: (z `[S, D]`, inputs) -> `[S, D]`.
        f_solver: solver, settings bound.
        x: inputs, leaves `[N, ...]`.
        z0: `[N, D]` starts.
        slots: S.
        rows: inputs that are given at once.
        step_budget: as for `advance`.
        **options: of `advance`.
    """
    solver = stream.settings_of(f_solver, z0[:slots])
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[:slots]), (x, z0))
    state = jax.jit(partial(stream.empty_slots, solver))(*first)
    step = jax.jit(partial(stream.advance, f, solver, step_budget=step_budget, **options))
    inside, found = np.full(slots, -1), {}
    for start in (*range(0, len(z0), rows), None):
        waiting = np.arange(rows) - rows if start is None else start + np.arange(rows)
        waiting[waiting >= len(z0)] = -1
        waiting = np.maximum(waiting, -1)
        given = jax.tree.map(lambda leaf, at=waiting: leaf[at], (x, z0))
        state, left = step(state, *given, count=np.int32((waiting >= 0).sum()))
        everyone = np.concatenate([inside, waiting])
        inside, gone = everyone[state.source], everyone[left.source]
        solution = jax.device_get(left.solution)
        for row in np.flatnonzero(gone >= 0):
            assert gone[row] not in found
            found[gone[row]] = _of_sample(solution, int(row))
    assert (inside == -1).all()
    parts = [found.pop(i) for i in range(len(z0))]
    assert not found
    fields: list[Any] = [np.stack(field) for field in zip(*parts)]
    joined = Solution(*fields)
    return joined._replace(abs_trace=joined.abs_trace.T, rel_trace=joined.rel_trace.T), int(
        state.nfe
    )


def _of_sample(solution: Solution, row: int) -> tuple:
    traces = solution.abs_trace[:, row], solution.rel_trace[:, row]
    return *(field[row] for field in solution[:6]), *traces
