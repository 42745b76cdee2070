"""When a sample of a solve is finished."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# The original's limits. A sample diverges when its residual exceeds its first one by these factors.
DIVERGED_REL = 1e3
DIVERGED_ABS = 1e6
# It stalls when the residual is under STALL_TOL tol and varies by less than STALL_RATIO over
# STALL_WINDOW steps.
STALL_WINDOW = 30
STALL_RATIO = 1.3
STALL_TOL = 3.0

ACTIVE = -1  # status of a sample that is not finished


class Rules(NamedTuple):
    """When a sample is finished.

    Attributes:
        tol: residual under which it has converged; a number, or one per sample.
        stop_mode: which residual that is, "rel" or "abs".
        first_abs, first_rel: `[B]` residuals of the start.
    """

    tol: float | jax.Array
    stop_mode: str
    first_abs: jax.Array
    first_rel: jax.Array


def first_residual(rules: Rules) -> jax.Array:
    """`[B]` the residual of the start that counts."""
    return objective_of(rules.first_abs, rules.first_rel, rules)


def objective_of(absolute: jax.Array, relative: jax.Array, rules: Rules) -> jax.Array:
    """The residual that counts."""
    return relative if rules.stop_mode == "rel" else absolute


def is_done(objective: jax.Array, tol: float | jax.Array) -> jax.Array:
    """Whether each sample has converged, `[B]` bool."""
    return (objective < tol) | (objective == 0)


def is_stalled(
    trace: jax.Array, residual: jax.Array, count: jax.Array, tol: float | jax.Array
) -> jax.Array:
    """The original's rule, `[B]` bool: a small residual that has hardly moved for 30 steps."""
    if trace.shape[0] <= STALL_WINDOW:
        return jnp.zeros(residual.shape, bool)
    start = jnp.maximum(count - STALL_WINDOW, 0)
    window = lax.dynamic_slice_in_dim(trace, start, STALL_WINDOW, axis=0)
    flat = jnp.max(window, axis=0) < STALL_RATIO * jnp.min(window, axis=0)
    return (count > STALL_WINDOW) & (residual < STALL_TOL * tol) & flat
