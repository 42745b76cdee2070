"""Backpropagation through a number of applications of the cell."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.adjoint import BackwardStats
from mdeq_jax.implicit.iteration import call_on_host, check_iteration, report, residuals, step_limit
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers import Solution
from mdeq_jax.tree import PyTree


def unroll(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    steps: int = 15,
    tau: float = 1.0,
    remat: bool = False,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    step_budget: int | jax.Array | None = None,
    trace: Callable | None = None,
) -> tuple[PyTree, Solution]:
    """`steps` applications z <- (1 - tau) z + tau f(z) from z0, with their exact gradient.

    This is the weight-tied network whose limit is the equilibrium model. It brings its own forward
    iteration, without a solver. It supports every mode and order of differentiation that the cell
    supports.

    Args:
        f: cell, `f(params, z, x) -> z`.
        params: parameters of the cell.
        x: input injection.
        z0: start, leaves `[B, ...]`; it gets a gradient.
        backward_stats: accepted as by `ift`; nothing is solved, so it stays zero.
        steps: applications of f; each adds everything that f computes to the memory.
        tau: damping, in (0, 1].
        remat: keep only the states, and compute each application again in the backward pass
            (Chen et al. 2016, 1604.06174): memory grows by one state a step.
        tol: a sample whose residual ends under this counts as CONVERGED; all steps are made.
        stop_mode: the residual that counts, "rel" or "abs".
        step_budget: makes fewer steps, at least one; may be traced (no recompilation).
        trace: function of (step, z, residual `[B]`) that the host calls at each state where f is
            evaluated: the start, as step 0, and all others but the last.

    Returns:
        The state after the last step, and the report of the state before it, where f was last
        evaluated. Row i of its traces belongs to the state before step i + 1.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `steps` is not an integer.
    """
    check_iteration(steps, tol, stop_mode)
    if not 0 < tau <= 1:
        raise ValueError(f"tau, the damping, must be in (0, 1]; got {tau}.")
    limit = step_limit(steps, step_budget)

    def apply(z):
        fz = f(params, z, x)
        return jax.tree.map(lambda a, b: (1 - tau) * a + tau * b, z, fz), residuals(z, fz)

    if remat:
        apply = jax.checkpoint(apply)

    def step(carry, n):
        new, measured = apply(carry[0])
        call_on_host(trace, n, carry[0], measured, stop_mode)
        return (new, carry[0]), measured

    def step_within_limit(carry, n):
        shapes = jax.eval_shape(step, carry, n)[1]
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        nothing = varying_like(shapes, nothing)
        return lax.cond(n < limit, lambda: step(carry, n), lambda: (carry, nothing))

    z0 = varying_like(jax.eval_shape(apply, z0)[0], z0)
    known = isinstance(limit, int)
    length = limit if known else steps
    (z, last), traces = lax.scan(step if known else step_within_limit, (z0, z0), jnp.arange(length))
    absolute, relative = (jnp.pad(t, ((0, steps - length), (0, 0))) for t in traces)
    return z, report(last, (absolute, relative), limit, nfe=limit, tol=tol, stop_mode=stop_mode)
