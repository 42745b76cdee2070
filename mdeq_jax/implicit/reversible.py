"""Reversible deep equilibrium models: exact gradients of an iteration at constant memory.

McCallum, Arora, Foster 2025 (2509.12917). Two states are relaxed in turn,

    y_{n+1} = (1 - beta) y_n + beta f(z_n),    z_{n+1} = (1 - beta) z_n + beta f(y_{n+1}),

both from z0, and both converge to the equilibrium. Each line can be solved for its old state,

    z_n = (z_{n+1} - beta f(y_{n+1})) / (1 - beta),    y_n = (y_{n+1} - beta f(z_n)) / (1 - beta),

so the backward pass rebuilds the iterates from the last ones instead of keeping them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.adjoint import BackwardStats
from mdeq_jax.implicit.attach import first_order_only
from mdeq_jax.implicit.iteration import call_on_host, check_iteration, report, residuals, step_limit
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers import Solution, Status
from mdeq_jax.solvers.norms import relative, safe_norms
from mdeq_jax.tree import PyTree, ravel_batch

DRIFT_TOL = 1e-2  # largest relative distance of the rebuilt start from z0 that counts as correct


def reversible(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    steps: int = 15,
    beta: float = 0.5,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    step_budget: int | jax.Array | None = None,
    trace: Callable | None = None,
) -> tuple[PyTree, Solution]:
    """`steps` reversible steps from z0, whose exact gradient needs the memory of one of them.

    It brings its own forward iteration, without a solver. Every division by 1 - beta amplifies the
    rounding error of the rebuilt states. It grows at least like |1 - beta|^-steps, and up to the
    square of this where the Jacobian is near 1 in size. In float32 a drift of 0.01 is reached after
    about 10 to 15 steps at beta = 0.5, and after 5 to 10 at 0.8. The backward pass ends at the
    start, which is known, and reports its distance from it in `backward_stats`. It supports reverse
    mode of first order only.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z0: start of both states, leaves `[B, ...]`; it gets no gradient.
        backward_stats: see `BackwardStats`; its `rel_residual` is the distance of the rebuilt
            start from z0 over the norm of the last state. `status` is DIVERGED where that is over
            0.01.
        steps: steps, of two evaluations of f each.
        beta: relaxation, in (0, 2) but not 1, at which a step cannot be undone.
        tol: a sample whose residual ends under this counts as CONVERGED; all steps are made.
        stop_mode: the residual that counts, "rel" or "abs".
        step_budget: makes fewer steps, at least one; may be traced (no recompilation).
        trace: function of (step, y, residual `[B]`) that the host calls after each step, counted
            from 1; never in the backward pass.

    Returns:
        The last z, and the report of the last y, where f was last evaluated.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `steps` is not an integer.
        NotImplementedError: the gradient is differentiated.
    """
    check_iteration(steps, tol, stop_mode)
    if not 0 < beta < 2 or beta == 1:
        raise ValueError(f"beta, the relaxation, must be in (0, 2) and not 1; got {beta}.")
    if backward_stats is None:
        backward_stats = BackwardStats.zeros(jax.tree.leaves(z0)[0].shape[0])
    limit = jnp.int32(step_limit(steps, step_budget))
    fz0 = jax.eval_shape(f, params, z0, x)
    z0, backward_stats = varying_like(fz0, (lax.stop_gradient(z0), backward_stats))
    host = partial(call_on_host, trace, stop_mode=stop_mode)
    iterated: Any = _iterate(f, beta, steps, host, params, x, z0, limit, backward_stats)
    z, y, traces = iterated
    return z, report(y, traces, limit, nfe=2 * limit, tol=tol, stop_mode=stop_mode)


def _relax(beta, old, value):
    return jax.tree.map(lambda a, b: (1 - beta) * a + beta * b, old, value)


def _unrelax(beta, new, value):
    return jax.tree.map(lambda a, b: (a - beta * b) / (1 - beta), new, value)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _iterate(f, beta, steps, host, params, x, z0, limit, backward_stats):
    """The last z and y, and the residuals of each y as `[steps, B]`."""

    def step(n, carry):
        y, z, abs_trace, rel_trace = carry
        y = _relax(beta, y, f(params, z, x))
        fy = f(params, y, x)
        absolute, relative = residuals(y, fy)
        host(n + 1, y, (absolute, relative))
        traces = abs_trace.at[n].set(absolute), rel_trace.at[n].set(relative)
        return y, _relax(beta, z, fy), *traces

    flat, _ = ravel_batch(z0)
    empty = jnp.zeros((steps, flat.shape[0]), jnp.promote_types(flat.dtype, jnp.float32))
    start = varying_like(z0, (z0, z0, empty, empty))
    y, z, *traces = lax.fori_loop(0, limit, step, start)
    return z, y, tuple(traces)


def _forward(f, beta, steps, host, params, x, z0, limit, backward_stats):
    iterated: Any = _iterate(f, beta, steps, host, params, x, z0, limit, backward_stats)
    z, y, traces = iterated
    return (z, y, traces), (params, x, z0, limit, y, z)


def _backward(f, beta, steps, host, saved, cotangents):
    saved, cotangent = first_order_only(
        (saved, cotangents[0]), "reversible", "the 'unroll' or 'ift' gradient"
    )
    params, x, z0, limit, y, z = saved
    floating, rebuild = _split_floating((params, x))

    def evaluate(floating, z):
        params, x = rebuild(floating)
        return f(params, z, x)

    def back(args):
        """Undoes new = (1 - beta) old + beta f(at): gives old, and the cotangents before it."""
        new, at, d_new, d_at, d_args = args
        f_at, pullback = jax.vjp(evaluate, floating, at)
        d_floating, d_point = pullback(jax.tree.map(lambda d: beta * d, d_new))
        add = partial(jax.tree.map, jnp.add)
        d_old = jax.tree.map(lambda d: (1 - beta) * d, d_new)
        return _unrelax(beta, new, f_at), d_old, add(d_at, d_point), add(d_args, d_floating)

    def step(_, carry):
        y, z, d_y, d_z, d_args = carry
        z, d_z, d_y, d_args = back((z, y, d_z, d_y, d_args))
        y, d_y, d_z, d_args = back((y, z, d_y, d_z, d_args))
        return y, z, d_y, d_z, d_args

    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = varying_like(z, (y, z, zeros(y), cotangent))
    # Gradients of values that do not vary over devices are sums over these.
    d_floating = [varying_like(leaf, jnp.zeros_like(leaf)) for leaf in floating]
    _, rebuilt, _, _, d_floating = lax.fori_loop(0, limit, step, (*state, d_floating))
    flat, first, last = (ravel_batch(state)[0] for state in (rebuilt, z0, z))
    drift = relative(*safe_norms(flat - first, last)).astype(jnp.float32)
    stats = BackwardStats(
        nfe=2 * limit.astype(jnp.float32),
        steps=jnp.full_like(drift, limit),
        rel_residual=drift,
        status=jnp.where(drift < DRIFT_TOL, Status.CONVERGED, Status.DIVERGED).astype(jnp.float32),
    )
    return *rebuild(d_floating, rest=None), None, None, varying_like(z, stats)


def _split_floating(tree):
    """The leaves of floating types, and a function that puts such leaves back among the others.

    The others are masks and token ids. `rebuild(floating, rest=None)` puts None in their place,
    which is their gradient.
    """
    leaves, treedef = jax.tree.flatten(tree)
    chosen = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

    def rebuild(floating, rest=leaves):
        floating, rest = iter(floating), rest or [None] * len(leaves)
        merged = [next(floating) if take else leaf for leaf, take in zip(rest, chosen)]
        return jax.tree.unflatten(treedef, merged)

    return [leaf for leaf, take in zip(leaves, chosen) if take], rebuild


_iterate.defvjp(_forward, _backward)
