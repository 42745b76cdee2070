"""The one loop that every solver runs in: evaluation, stopping rule, best iterate, traces.

A solver adds an `update` that makes the next iterate; everything that decides when a sample is
finished, and what is handed back, is here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.solvers.norms import residuals
from mdeq_jax.solvers.solution import Solution, Status
from mdeq_jax.solvers.validate import check_arguments, check_record_at

# The limits of the original code: how far a residual may grow over its first value, and when a
# sample that hardly moves any more is let go.
DIVERGED_REL = 1e3
DIVERGED_ABS = 1e6
STALL_WINDOW = 30
STALL_RATIO = 1.3
STALL_TOL = 3.0


# (algorithm state, step, z, f(z), f(z) - z, active) -> (algorithm state, next z, stuck [B]).
# In the next z, samples that are not active or that are stuck are where they were. A sample that is
# not active is not stuck.
Update = Callable[
    [Any, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]
]


class _Loop(NamedTuple):
    step: jax.Array
    z: jax.Array  # [B, D]
    fz: jax.Array  # [B, D]
    gz: jax.Array  # [B, D]; f(z) - z, from the pass over memory that z and fz come from
    best: jax.Array  # [B, D]
    best_abs: jax.Array  # [B]
    best_rel: jax.Array  # [B]
    best_step: jax.Array  # [B]
    status: jax.Array  # [B]; _ACTIVE while the sample runs
    abs_trace: jax.Array  # [max_steps, B]
    rel_trace: jax.Array  # [max_steps, B]
    recorded: jax.Array | tuple  # [n, B, D]
    algorithm: Any


_ACTIVE = -1


def _stalled(trace: jax.Array, residual: jax.Array, step: jax.Array, tol: float) -> jax.Array:
    """The original's rule: under 3 tol, and within a factor 1.3 for 30 steps. `[B]` bool."""
    if trace.shape[0] <= STALL_WINDOW:
        return jnp.zeros(residual.shape, bool)
    start = jnp.maximum(step - STALL_WINDOW, 0)
    window = lax.dynamic_slice_in_dim(trace, start, STALL_WINDOW, axis=0)
    flat = jnp.max(window, axis=0) < STALL_RATIO * jnp.min(window, axis=0)
    return (step > STALL_WINDOW) & (residual < STALL_TOL * tol) & flat


def iterate(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    init: Callable[[jax.Array], Any],
    update: Update,
    *,
    max_steps: int,
    tol: float,
    stop_mode: str,
    step_budget: int | jax.Array | None,
    record_at: tuple[int, ...] = (),
    keep_algorithm: bool = False,
) -> Solution:
    """Runs `update` until no sample is active or the steps are used up.

    Args:
        f: `[B, D] -> [B, D]`, one sample's output a function of that sample alone.
        z0: `[B, D]` start. A row that is not finite is given up at once: DIVERGED, and zero.
        init: makes the algorithm's state from `z0`.
        update: makes the next iterate, see `Update`.
        max_steps: sizes the buffers; `f` is evaluated at most `max_steps + 1` times.
        tol: a sample is finished once its residual is under this.
        stop_mode: which residual counts, "rel" or "abs".
        step_budget: ends the loop earlier; may be traced, so changing it does not recompile.
        record_at: steps after which the best iterates are recorded, ascending.
        keep_algorithm: hands out the algorithm's last state as the solution's `inverse`.

    Raises:
        ValueError, TypeError: see `check_arguments`, `check_record_at`.
    """
    check_record_at(record_at, max_steps)
    check_arguments(
        f, z0, max_steps=max_steps, tol=tol, stop_mode=stop_mode, step_budget=step_budget
    )
    limit = max_steps if step_budget is None else jnp.minimum(max_steps, step_budget)
    batch = z0.shape[0]

    # Without it XLA works out while it compiles, for seconds, that a start of zeros is finite.
    z0 = lax.optimization_barrier(z0)
    usable = jnp.isfinite(z0).all(axis=1)
    z0 = jnp.where(usable[:, None], z0, 0)
    fz0 = f(z0)
    first_abs, first_rel, finite = residuals(z0, fz0)
    finite &= usable
    objective0 = first_rel if stop_mode == "rel" else first_abs
    status = jnp.where(_done(objective0, tol), Status.CONVERGED, _ACTIVE)
    status = jnp.where(finite, status, Status.DIVERGED)
    nan_trace = jnp.full((max_steps, batch), jnp.nan, first_abs.dtype)
    start = _Loop(
        step=jnp.int32(0),
        z=z0,
        fz=jnp.where(finite[:, None], fz0, z0),
        gz=jnp.where(finite[:, None], fz0 - z0, 0),
        best=z0,
        best_abs=first_abs,
        best_rel=first_rel,
        best_step=jnp.zeros(batch, jnp.int32),
        status=status.astype(jnp.int32),
        abs_trace=nan_trace,
        rel_trace=nan_trace,
        recorded=jnp.broadcast_to(z0, (len(record_at), *z0.shape)) if record_at else (),
        algorithm=init(z0),
    )

    def cond(loop: _Loop) -> jax.Array:
        return (loop.step < limit) & jnp.any(loop.status == _ACTIVE)

    def body(loop: _Loop) -> _Loop:
        active = loop.status == _ACTIVE
        algorithm, z, stuck = update(loop.algorithm, loop.step, loop.z, loop.fz, loop.gz, active)
        moving = active & ~stuck
        fz = f(z)
        step = loop.step + 1

        abs_residual, rel_residual, finite = residuals(z, fz)
        objective, best = (
            (rel_residual, loop.best_rel) if stop_mode == "rel" else (abs_residual, loop.best_abs)
        )
        better = moving & finite & (objective < best)
        abs_trace = loop.abs_trace.at[step - 1].set(jnp.where(moving, abs_residual, jnp.nan))
        rel_trace = loop.rel_trace.at[step - 1].set(jnp.where(moving, rel_residual, jnp.nan))

        done = finite & _done(objective, tol)
        diverged = ~finite | (abs_residual > DIVERGED_ABS * first_abs)
        if stop_mode == "rel":  # large too where f(z) merely passes near zero
            grown = abs_residual > first_abs
            diverged |= grown & (rel_residual > DIVERGED_REL * first_rel)
        trace = rel_trace if stop_mode == "rel" else abs_trace
        stalled = stuck | _stalled(trace, objective, step, tol)
        outcome = jnp.where(
            moving & done,
            Status.CONVERGED,
            jnp.where(moving & diverged, Status.DIVERGED, Status.STALLED),
        )
        ended = stuck | (moving & (done | diverged | stalled))
        # A sample that is done rests at its best iterate, with f(z) - z = 0: finite and harmless.
        best_z = jnp.where(better[:, None], z, loop.best)
        healthy = (moving & ~diverged)[:, None]
        recorded = loop.recorded
        if record_at:  # each slot is overwritten until its step has come
            slot = jnp.searchsorted(jnp.asarray(record_at), step)
            recorded = recorded.at[slot].set(best_z, mode="drop")
        return _Loop(
            step=step,
            z=jnp.where(healthy, z, best_z),
            fz=jnp.where(healthy, fz, best_z),
            gz=jnp.where(healthy, fz - z, 0),
            best=best_z,
            best_abs=jnp.where(better, abs_residual, loop.best_abs),
            best_rel=jnp.where(better, rel_residual, loop.best_rel),
            best_step=jnp.where(better, step, loop.best_step),
            status=jnp.where(active & ended, outcome, loop.status).astype(jnp.int32),
            abs_trace=abs_trace,
            rel_trace=rel_trace,
            recorded=recorded,
            algorithm=algorithm,
        )

    end = lax.while_loop(cond, body, start)
    recorded = end.recorded
    if record_at:
        passed = jnp.asarray(record_at) <= end.step
        recorded = jnp.where(passed[:, None, None], recorded, end.best)
    return Solution(
        z=end.best,
        residual=end.best_abs,
        rel_residual=end.best_rel,
        steps=end.best_step,
        nfe=end.step + 1,
        status=jnp.where(end.status == _ACTIVE, Status.MAX_STEPS, end.status).astype(jnp.int32),
        abs_trace=end.abs_trace,
        rel_trace=end.rel_trace,
        recorded=recorded,
        inverse=end.algorithm if keep_algorithm else (),
    )


def _done(objective: jax.Array, tol: float) -> jax.Array:
    return (objective < tol) | (objective == 0)
