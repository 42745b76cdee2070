"""The stages of the loop that every solver runs in.

`start` prepares the loop. Each step of it has three stages: `evaluate` asks the algorithm for the
next iterates and evaluates f, `judge` decides which samples are finished, and `record` keeps the
best iterates. `finish` makes the `Solution`. `begin`, `propose` and `assess` are the parts of these
without f.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers.norms import in_float32, residuals
from mdeq_jax.solvers.solution import Solution, Status
from mdeq_jax.solvers.states import (
    Algorithm,
    Evaluation,
    Judgement,
    Loop,
    Proposal,
    Residuals,
    Step,
)
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


def start(f, z0, algorithm, max_steps, tol, stop_mode, record_at, fz0=None) -> tuple[Loop, Rules]:
    """The loop before its first step, and the rules that depend on the first residuals."""
    # Without the barrier XLA spends seconds of compilation proving that a start of zeros is finite.
    z0 = lax.optimization_barrier(z0)
    usable = jnp.isfinite(z0).all(axis=1)
    z0 = jnp.where(usable[:, None], z0, 0)
    fz0 = stored(f(z0)) if fz0 is None else fz0
    z0 = varying_like(fz0, z0)
    measured = Residuals(*residuals(z0, fz0))
    rules = Rules(tol, stop_mode, measured.absolute, measured.relative)
    measured = measured._replace(finite=measured.finite & usable)
    recorded = jnp.broadcast_to(z0, (len(record_at), *z0.shape)) if record_at else ()
    start = begin(z0, fz0, measured, rules, max_steps)
    start = start._replace(recorded=recorded, algorithm=algorithm.init(z0))
    return varying_like(fz0, start), rules


def begin(z0, fz0, measured: Residuals, rules: Rules, max_steps: int) -> Loop:
    """The loop after the evaluation of its start, without the algorithm's state."""
    finite = measured.finite
    status = jnp.where(is_done(first_residual(rules), rules.tol), Status.CONVERGED, ACTIVE)
    status = jnp.where(finite, status, Status.DIVERGED)
    nan_trace = jnp.full((max_steps, z0.shape[0]), jnp.nan, rules.first_abs.dtype)
    return Loop(
        step=jnp.int32(0),
        z=z0,
        fz=jnp.where(finite[:, None], fz0, z0),
        gz=jnp.where(finite[:, None], in_float32(fz0) - in_float32(z0), 0),
        best=z0,
        best_abs=rules.first_abs,
        best_rel=rules.first_rel,
        best_step=jnp.zeros(z0.shape[0], jnp.int32),
        status=status.astype(jnp.int32),
        abs_trace=nan_trace,
        rel_trace=nan_trace,
        recorded=(),
        algorithm=(),
    )


def evaluate(f, algorithm: Algorithm, loop: Loop, rules: Rules) -> Evaluation:
    """The next iterates, their residuals, and the traces with these."""
    proposal = propose(algorithm, loop)
    fz = stored(f(proposal.z))
    return assess(loop, proposal, fz, Residuals(*residuals(proposal.z, fz)), rules)


def propose(algorithm: Algorithm, loop: Loop) -> Proposal:
    """The iterates at which f is evaluated next."""
    active = loop.status == ACTIVE
    now = Step(loop.z, loop.fz, loop.gz, active)
    state, z, stuck = algorithm.update(loop.algorithm, loop.step, now)
    return Proposal(state, stored(z), active, stuck)


def assess(
    loop: Loop, proposal: Proposal, fz: jax.Array, measured: Residuals, rules: Rules
) -> Evaluation:
    """What f gives at the proposed iterates, compared with the best so far."""
    moving = proposal.active & ~proposal.stuck
    count = loop.step + 1
    objective = objective_of(measured.absolute, measured.relative, rules)
    better = objective < objective_of(loop.best_abs, loop.best_rel, rules)
    better &= moving & measured.finite
    abs_trace, rel_trace = (
        trace.at[count - 1].set(jnp.where(moving, residual, jnp.nan))
        for trace, residual in (
            (loop.abs_trace, measured.absolute),
            (loop.rel_trace, measured.relative),
        )
    )
    return Evaluation(
        count=count,
        algorithm=proposal.algorithm,
        z=proposal.z,
        fz=fz,
        active=proposal.active,
        stuck=proposal.stuck,
        moving=moving,
        abs_residual=measured.absolute,
        rel_residual=measured.relative,
        finite=measured.finite,
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


def stored(x: jax.Array) -> jax.Array:
    """`x` as memory holds it.

    XLA may keep a number narrower than float32 in float32 for the operations that it fuses. The
    residual would then belong to another state than the one returned.
    """
    return lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x
