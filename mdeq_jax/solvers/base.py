"""The one loop that every solver runs in: evaluation, stopping rule, best iterate, traces.

A solver adds an `update` that makes the next iterate; everything that decides when a sample is
finished, and what is handed back, is here.
"""

import enum
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import backend
from mdeq_jax.solvers.checks import check_arguments, check_record_at

REL_EPS = 1e-9  # keeps the relative residual finite where f(z) = 0

# The limits of the original code: how far a residual may grow over its first value, and when a
# sample that hardly moves any more is let go.
DIVERGED_REL = 1e3
DIVERGED_ABS = 1e6
STALL_WINDOW = 30
STALL_RATIO = 1.3
STALL_TOL = 3.0


class Status(enum.IntEnum):
    """How a sample's solve ended."""

    CONVERGED = 0  # residual under `tol`
    MAX_STEPS = 1  # `max_steps` or `step_budget` reached first
    STALLED = 2  # no further progress: residual flat, or the solver has no next step
    DIVERGED = 3  # start or residual not finite, or residual far above its first value


class Solution(NamedTuple):
    """What a solver returns. `B` samples, `D` numbers each.

    Attributes:
        z: `[B, D]` iterate with the lowest residual (by `stop_mode`) of each sample; always
            finite.
        residual: `[B]` absolute residual |f(z) - z| at `z`; infinite where no finite one was met.
        rel_residual: `[B]` relative residual |f(z) - z| / (|f(z)| + 1e-9) at `z`; the same.
        steps: `[B]` int32, the step that gave `z`; 0 is the start.
        nfe: int32 scalar, evaluations of `f` on the batch: one for the start and one a step, until
            the last sample is done. Under `jax.vmap` each element counts its own; `f` runs, masked,
            until the slowest element is done.
        status: `[B]` int32, values of `Status`.
        abs_trace: `[max_steps, B]` absolute residual after each step, infinite where it is no
            number; NaN once a sample is done.
        rel_trace: `[max_steps, B]` the same for the relative residual.
        recorded: `[n, B, D]` best iterate of each sample after the n steps `record_at`, those that
            a solve did not come to like its last; `()` where none were asked for.
        inverse: Broyden's `InverseEstimate`, where it was asked for; else `()`.
    """

    z: jax.Array
    residual: jax.Array
    rel_residual: jax.Array
    steps: jax.Array
    nfe: jax.Array
    status: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array
    recorded: jax.Array | tuple = ()
    inverse: Any = ()


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


def _norms(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Euclidean norm of each sample of each `[B, D]`, whose squares cannot overflow, nor vanish.

    A lost residual would be a lie. But the plain norm is nearly always right: CPUs compute another
    only where it is not. GPUs always do, in the same pass over memory, as a branch would make them
    wait for the host at every step.
    """
    # By a power of two, so that scaling rounds nothing. The ranges of the three sums overlap.
    scale = 2.0 ** (3 * jnp.finfo(arrays[0].dtype).maxexp // 4)
    batch, features = arrays[0].shape

    def norm(total, reduced, enlarged):
        other = jnp.where(total > 1, jnp.sqrt(reduced) * scale, jnp.sqrt(enlarged) / scale)
        return jnp.where(_in_range(total, features), jnp.sqrt(total), other)

    if not backend.on_cpu():
        squares = [jnp.square(x * factor) for x in arrays for factor in (1, 1 / scale, scale)]
        # Sums of parts first, as XLA would do it; then those of all of them in one kernel.
        parts = math.gcd(features, 128)
        sums = [jnp.sum(s.reshape(batch, parts, features // parts), axis=2) for s in squares]
        sums = jnp.sum(jnp.stack(sums), axis=2).reshape(len(arrays), 3, batch)
        return tuple(norm(*three) for three in sums)

    def total(x):
        return jnp.sum(jnp.square(x), axis=1)

    totals = [total(x) for x in arrays]
    right = jnp.stack([_in_range(t, features) for t in totals])
    return lax.cond(
        right.all(),
        lambda: tuple(map(jnp.sqrt, totals)),
        lambda: tuple(
            norm(t, total(x * (1 / scale)), total(x * scale)) for t, x in zip(totals, arrays)
        ),
    )


def _in_range(total: jax.Array, terms: int) -> jax.Array:
    """Whether a sum of squares is right: all that matters in it are normal numbers."""
    info = jnp.finfo(total.dtype)
    return (total > terms * float(info.tiny / info.eps)) & (total < float(info.max))


def _residuals(z: jax.Array, fz: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Absolute and relative residual, infinite where they are no numbers, and where they are."""
    absolute, size = _norms(fz - z, fz)
    finite = jnp.isfinite(absolute) & jnp.isfinite(size)
    relative = jnp.where(finite, absolute / (size + REL_EPS), jnp.inf)
    return jnp.where(finite, absolute, jnp.inf), relative, finite


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
    first_abs, first_rel, finite = _residuals(z0, fz0)
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

        abs_residual, rel_residual, finite = _residuals(z, fz)
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
