"""The one loop that every solver runs in; its stages are in `stages`.

A solver adds an `Algorithm`, which makes the iterates. Stopping rules, best iterates and traces are
the same for all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.solvers import stages
from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.states import Algorithm, Loop
from mdeq_jax.solvers.stopping import ACTIVE, first_residual
from mdeq_jax.solvers.validate import check_arguments, check_record_at


def iterate(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    algorithm: Algorithm,
    *,
    max_steps: int,
    tol: float | jax.Array,
    stop_mode: str,
    step_budget: int | jax.Array | None,
    record_at: tuple[int, ...] = (),
    keep_algorithm: bool = False,
    trace: Callable | None = None,
    fz0: jax.Array | None = None,
) -> Solution:
    """Runs an algorithm until every sample is finished or the steps are used up.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start. A row that is not finite is DIVERGED at once, with a zero iterate.
        algorithm: makes the iterates.
        max_steps: size of the buffers; f is evaluated at most `max_steps + 1` times.
        tol: a sample is finished once its residual is under this. May be traced, and `[B]`.
        stop_mode: which residual counts, "rel" or "abs".
        step_budget: ends the loop earlier; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded, ascending.
        keep_algorithm: whether to return the algorithm's last state as the solution's `inverse`.
        trace: function of (step, z `[B, D]`, residual `[B]`) that the host calls after the start
            (step 0) and each step. The residual is that of `stop_mode`.
        fz0: f(z0), if it is known.

    Raises:
        ValueError, TypeError: see `check_arguments`, `check_record_at`.
    """
    check_record_at(record_at, max_steps)
    check_arguments(
        f, z0, max_steps=max_steps, tol=tol, stop_mode=stop_mode, step_budget=step_budget
    )
    limit = max_steps if step_budget is None else jnp.minimum(max_steps, step_budget)
    z0 = jnp.asarray(z0)
    start, rules = stages.start(f, z0, algorithm, max_steps, tol, stop_mode, record_at, fz0)
    if trace is not None:
        jax.debug.callback(trace, start.step, start.z, first_residual(rules))

    def unfinished(loop: Loop) -> jax.Array:
        return (loop.step < limit) & jnp.any(loop.status == ACTIVE)

    def step(loop: Loop) -> Loop:
        evaluation = stages.evaluate(f, algorithm, loop, rules)
        judgement = stages.judge(evaluation, rules)
        if trace is not None:
            jax.debug.callback(trace, evaluation.count, evaluation.z, judgement.objective)
        return stages.record(loop, evaluation, judgement, record_at)

    end = lax.while_loop(unfinished, step, start)
    solution = stages.finish(end, record_at, keep_algorithm)
    return solution if fz0 is None else solution._replace(nfe=solution.nfe - 1)
