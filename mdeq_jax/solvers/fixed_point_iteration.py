"""Plain (damped) fixed-point iteration."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdeq_jax.solvers.loop import iterate
from mdeq_jax.solvers.solution import Solution


def fixed_point_iteration(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    *,
    max_steps: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    tau: float = 1.0,
    step_budget: int | jax.Array | None = None,
    record_at: tuple[int, ...] = (),
) -> Solution:
    """Iterates z <- (1 - tau) z + tau f(z) (Krasnoselskii-Mann; Picard for tau = 1).

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start.
        max_steps: most steps; `f` is evaluated once more than there are steps.
        tol: a sample is done once its residual is under this.
        stop_mode: "rel" or "abs", see `Solution`.
        tau: damping, in (0, 1]; 1 is the undamped iteration.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the report, ascending.

    Raises:
        ValueError, TypeError: an argument is out of range, or `f` does not keep shape and type.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1]; got {tau}.")

    def update(state, step, z, fz, gz, active):
        proposed = z + tau * gz if tau != 1 else fz
        return state, jnp.where(active[:, None], proposed, z), jnp.zeros_like(active)

    return iterate(
        f,
        z0,
        lambda z: (),
        update,
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
    )
