"""Fixed-point iteration, with damping."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdeq_jax.solvers.loop import iterate
from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.states import Algorithm, Step


def fixed_point_iteration(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    *,
    max_steps: int = 50,
    tol: float | jax.Array = 1e-3,
    stop_mode: str = "rel",
    tau: float = 1.0,
    step_budget: int | jax.Array | None = None,
    record_at: tuple[int, ...] = (),
    trace: Callable | None = None,
    fz0: jax.Array | None = None,
    run: Callable[..., Solution] = iterate,
) -> Solution:
    """Iterates z <- (1 - tau) z + tau f(z) (Krasnoselskii-Mann; Picard for tau = 1).

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start.
        max_steps: most steps; f is evaluated once more than there are steps.
        tol: a sample is finished once its residual is under this. May be traced, and `[B]`.
        stop_mode: "rel" or "abs", see `Solution`.
        tau: damping, in (0, 1]; 1 is the undamped iteration.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the solution, ascending.
        trace: function of (step, z `[B, D]`, residual `[B]`) that the host calls after the start
            (step 0) and each step, through `jax.debug.callback`. The residual is that of
            `stop_mode`; samples that are finished rest at their best iterate.
        fz0: `[B, D]` f(z0), if it is known; saves that evaluation.
        run: runs the algorithm; see `stream.settings_of`.

    Returns:
        A `Solution`.

    Raises:
        ValueError, TypeError: an argument is out of range, or f changes the shape or type of z.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1]; got {tau}.")

    def update(state, _, step: Step):
        proposed = (step.z + tau * step.gz).astype(step.z.dtype) if tau != 1 else step.fz
        z = jnp.where(step.active[:, None], proposed, step.z)
        return state, z, jnp.zeros_like(step.active)

    return run(
        f,
        z0,
        Algorithm(init=lambda z: (), update=update),
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
        trace=trace,
        fz0=fz0,
    )
