"""The stages of the loop that every solver runs in.

`start` prepares the loop. Each step of it has three stages: `evaluate` asks the algorithm for the
next iterates and evaluates f, `judge` decides which samples are finished, and `record` keeps the
best iterates. `finish` makes the `Solution`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers.norms import in_float32, residuals
from mdeq_jax.solvers.solution import Solution, Status
from mdeq_jax.solvers.stopping import (
    ACTIVE,
    DIVERGED_ABS,
    DIVERGED_REL,
    Rules,
    first_residual,
    is_done,
    is_stalled,
    objective_of,
)


class Step(NamedTuple):
    """What an algorithm makes the next iterates from.

    Attributes:
        z: `[B, D]` iterates.
        fz: `[B, D]` f(z).
        gz: `[B, D]` f(z) - z, in float32 or better; computed in the pass over memory that reads z
            and f(z) anyway.
        active: `[B]` bool, the samples that are not finished.
    """

    z: jax.Array
    fz: jax.Array
    gz: jax.Array
    active: jax.Array


class Algorithm(NamedTuple):
    """What distinguishes one solver from another.

    Attributes:
        init: z0 `[B, D]` -> the algorithm's state.
        update: (state, number of the step, `Step`) -> (state, next z `[B, D]`, stuck `[B]` bool).
            Samples that are stuck have no next iterate and end here. They and those that are not
            active keep their z. Only active samples may be stuck.
    """

    init: Callable[[jax.Array], Any]
    update: Callable[[Any, jax.Array, Step], tuple[Any, jax.Array, jax.Array]]


class Loop(NamedTuple):
    """What the loop carries.

    Attributes:
        step: number of the next step.
        z, fz, gz: `[B, D]` as in `Step`.
        best: `[B, D]` best iterate of each sample.
        best_abs, best_rel: `[B]` its residuals.
        best_step: `[B]` the step that gave it.
        status: `[B]` values of `Status`, or `ACTIVE`.
        abs_trace, rel_trace: `[max_steps, B]` residuals after each step.
        recorded: `[n, B, D]` best iterates after the steps `record_at`, or `()`.
        algorithm: the algorithm's state.
    """

    step: jax.Array
    z: jax.Array
    fz: jax.Array
    gz: jax.Array
    best: jax.Array
    best_abs: jax.Array
    best_rel: jax.Array
    best_step: jax.Array
    status: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array
    recorded: Any
    algorithm: Any


class Evaluation(NamedTuple):
    """The next iterates and their residuals.

    Attributes:
        count: number of steps made, this one included.
        algorithm: the algorithm's state.
        z, fz: `[B, D]`.
        active: `[B]` bool, not finished before this step.
        stuck: `[B]` bool, active but without a next iterate.
        moving: `[B]` bool, active and not stuck.
        abs_residual, rel_residual: `[B]`, infinite if not finite.
        finite: `[B]` bool, whether they are finite.
        better: `[B]` bool, whether the iterate is the sample's best so far.
        abs_trace, rel_trace: `[max_steps, B]` residuals up to this step.
    """

    count: jax.Array
    algorithm: Any
    z: jax.Array
    fz: jax.Array
    active: jax.Array
    stuck: jax.Array
    moving: jax.Array
    abs_residual: jax.Array
    rel_residual: jax.Array
    finite: jax.Array
    better: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array


class Judgement(NamedTuple):
    """Which samples end with this step.

    Attributes:
        ended: `[B]` bool.
        outcome: `[B]` values of `Status`, for those that ended.
        diverged: `[B]` bool.
        objective: `[B]` the residual that counts.
    """

    ended: jax.Array
    outcome: jax.Array
    diverged: jax.Array
    objective: jax.Array


def start(f, z0, algorithm, max_steps, tol, stop_mode, record_at) -> tuple[Loop, Rules]:
    """The loop before its first step, and the rules that depend on the first residuals."""
    # Without the barrier XLA spends seconds of compilation proving that a start of zeros is finite.
    z0 = lax.optimization_barrier(z0)
    usable = jnp.isfinite(z0).all(axis=1)
    z0 = jnp.where(usable[:, None], z0, 0)
    fz0 = _stored(f(z0))
    z0 = varying_like(fz0, z0)
    first_abs, first_rel, finite = residuals(z0, fz0)
    finite &= usable
    rules = Rules(tol, stop_mode, first_abs, first_rel)
    status = jnp.where(is_done(first_residual(rules), tol), Status.CONVERGED, ACTIVE)
    status = jnp.where(finite, status, Status.DIVERGED)
    nan_trace = jnp.full((max_steps, z0.shape[0]), jnp.nan, first_abs.dtype)
    start = Loop(
        step=jnp.int32(0),
        z=z0,
        fz=jnp.where(finite[:, None], fz0, z0),
        gz=jnp.where(finite[:, None], in_float32(fz0) - in_float32(z0), 0),
        best=z0,
        best_abs=first_abs,
        best_rel=first_rel,
        best_step=jnp.zeros(z0.shape[0], jnp.int32),
        status=status.astype(jnp.int32),
        abs_trace=nan_trace,
        rel_trace=nan_trace,
        recorded=jnp.broadcast_to(z0, (len(record_at), *z0.shape)) if record_at else (),
        algorithm=algorithm.init(z0),
    )
    return varying_like(fz0, start), rules


def evaluate(f, algorithm: Algorithm, loop: Loop, rules: Rules) -> Evaluation:
    """The next iterates, their residuals, and the traces with these."""
    active = loop.status == ACTIVE
    now = Step(loop.z, loop.fz, loop.gz, active)
    state, z, stuck = algorithm.update(loop.algorithm, loop.step, now)
    moving = active & ~stuck
    z = _stored(z)
    fz = _stored(f(z))
    count = loop.step + 1

    abs_residual, rel_residual, finite = residuals(z, fz)
    objective = objective_of(abs_residual, rel_residual, rules)
    better = moving & finite & (objective < objective_of(loop.best_abs, loop.best_rel, rules))
    abs_trace, rel_trace = (
        trace.at[count - 1].set(jnp.where(moving, residual, jnp.nan))
        for trace, residual in ((loop.abs_trace, abs_residual), (loop.rel_trace, rel_residual))
    )
    return Evaluation(
        count=count,
        algorithm=state,
        z=z,
        fz=fz,
        active=active,
        stuck=stuck,
        moving=moving,
        abs_residual=abs_residual,
        rel_residual=rel_residual,
        finite=finite,
        better=better,
        abs_trace=abs_trace,
        rel_trace=rel_trace,
    )


def judge(now: Evaluation, rules: Rules) -> Judgement:
    """Which samples end with this step, and how."""
    objective = objective_of(now.abs_residual, now.rel_residual, rules)
    done = now.finite & is_done(objective, rules.tol)
    diverged = ~now.finite | (now.abs_residual > DIVERGED_ABS * rules.first_abs)
    if rules.stop_mode == "rel":
        # A relative residual is also large where f(z) passes near zero.
        grown = now.abs_residual > rules.first_abs
        diverged |= grown & (now.rel_residual > DIVERGED_REL * rules.first_rel)
    trace = objective_of(now.abs_trace, now.rel_trace, rules)
    stalled = now.stuck | is_stalled(trace, objective, now.count, rules.tol)
    outcome = jnp.where(
        now.moving & done,
        Status.CONVERGED,
        jnp.where(now.moving & diverged, Status.DIVERGED, Status.STALLED),
    )
    ended = now.stuck | (now.moving & (done | diverged | stalled))
    return Judgement(ended, outcome, diverged, objective)


def record(loop: Loop, now: Evaluation, judgement: Judgement, record_at) -> Loop:
    """The loop after the step, with the best iterates so far.

    A sample that is finished rests at its best iterate with f(z) - z = 0, finite and harmless.
    """
    best = jnp.where(now.better[:, None], now.z, loop.best)
    healthy = (now.moving & ~judgement.diverged)[:, None]
    recorded = loop.recorded
    if record_at:  # each slot is overwritten until its step has come
        slot = jnp.searchsorted(jnp.asarray(record_at), now.count)
        recorded = recorded.at[slot].set(best, mode="drop")
    return Loop(
        step=now.count,
        z=jnp.where(healthy, now.z, best),
        fz=jnp.where(healthy, now.fz, best),
        gz=jnp.where(healthy, in_float32(now.fz) - in_float32(now.z), 0),
        best=best,
        best_abs=jnp.where(now.better, now.abs_residual, loop.best_abs),
        best_rel=jnp.where(now.better, now.rel_residual, loop.best_rel),
        best_step=jnp.where(now.better, now.count, loop.best_step),
        status=jnp.where(now.active & judgement.ended, judgement.outcome, loop.status).astype(
            jnp.int32
        ),
        abs_trace=now.abs_trace,
        rel_trace=now.rel_trace,
        recorded=recorded,
        algorithm=now.algorithm,
    )


def finish(end: Loop, record_at, keep_algorithm: bool) -> Solution:
    """The solution, from the loop after its last step."""
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
        status=jnp.where(end.status == ACTIVE, Status.MAX_STEPS, end.status).astype(jnp.int32),
        abs_trace=end.abs_trace,
        rel_trace=end.rel_trace,
        recorded=recorded,
        inverse=end.algorithm if keep_algorithm else (),
    )


def _stored(x: jax.Array) -> jax.Array:
    """`x` as memory holds it.

    XLA may keep a number narrower than float32 in float32 for the operations that it fuses. The
    residual would then belong to another state than the one returned.
    """
    return lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x
