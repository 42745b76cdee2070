"""Limits and report of a forward iteration that belongs to a gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.solvers import Solution, Status, norms
from mdeq_jax.solvers.stopping import is_done
from mdeq_jax.solvers.validate import STOP_MODES, check_count, check_tolerance
from mdeq_jax.tree import PyTree, ravel_batch


def check_iteration(steps: int, tol: float, stop_mode: str) -> None:
    """Refuses settings out of range.

    Raises:
        ValueError: a setting is out of range.
        TypeError: `steps` is not an integer.
    """
    check_count("steps, the number of iterations,", steps)
    check_tolerance(tol)
    if stop_mode not in STOP_MODES:
        raise ValueError(f"stop_mode must be one of {STOP_MODES}; got {stop_mode!r}.")


def step_limit(steps: int, step_budget: int | jax.Array | None) -> int | jax.Array:
    """The number of iterations to run: at most `steps` and `step_budget`, at least one."""
    if step_budget is None:
        return steps
    if isinstance(step_budget, int):
        return max(1, min(steps, step_budget))
    return jnp.clip(step_budget, 1, steps)


def residuals(z: PyTree, fz: PyTree) -> tuple[jax.Array, jax.Array]:
    """Absolute and relative residual of each sample, `[B]`, without a derivative."""
    flat_z, flat_fz = jax.lax.stop_gradient((ravel_batch(z)[0], ravel_batch(fz)[0]))
    abs_residual, rel_residual, _ = norms.residuals(flat_z, flat_fz)
    return abs_residual, rel_residual


def call_on_host(
    trace: Callable | None,
    step: jax.Array,
    z: PyTree,
    measured: tuple[jax.Array, jax.Array],
    stop_mode: str,
) -> None:
    """Calls `trace(step, z, residual)` on the host, with the residual that counts."""
    if trace is None:
        return
    residual = measured[1] if stop_mode == "rel" else measured[0]

    def call(step, z, residual):
        trace(step, jax.tree.map(np.asarray, z), residual)

    jax.debug.callback(call, *jax.lax.stop_gradient((step, z, residual)))


def report(
    z: PyTree,
    traces: tuple[jax.Array, jax.Array],
    limit: int | jax.Array,
    *,
    nfe: int | jax.Array,
    tol: float,
    stop_mode: str,
) -> Solution:
    """The report of an iteration that ran `limit` steps and last evaluated f at `z`.

    Args:
        z: state, leaves `[B, ...]`, whose residuals are in the last filled row of the traces.
        traces: `[steps, B]` absolute and relative residuals, filled up to row `limit`.
        limit: number of iterations.
        nfe: evaluations of f.
        tol: a sample whose last residual is under this, or 0, is CONVERGED.
        stop_mode: which residual counts, "rel" or "abs".
    """
    used = (jnp.arange(traces[0].shape[0]) < limit)[:, None]
    abs_trace, rel_trace = (jnp.where(used, trace, jnp.nan) for trace in traces)
    residual, rel_residual = abs_trace[limit - 1], rel_trace[limit - 1]
    objective = rel_residual if stop_mode == "rel" else residual
    status = jnp.where(is_done(objective, tol), Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(jnp.isfinite(objective), status, Status.DIVERGED)
    flat, _ = ravel_batch(z)
    solution = Solution(
        z=flat,
        residual=residual,
        rel_residual=rel_residual,
        steps=jnp.full(flat.shape[0], limit, jnp.int32),
        nfe=jnp.int32(nfe),
        status=status.astype(jnp.int32),
        abs_trace=abs_trace,
        rel_trace=rel_trace,
    )
    return jax.lax.stop_gradient(solution)
