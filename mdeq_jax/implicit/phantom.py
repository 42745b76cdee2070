"""Gradients that replace the adjoint solve with a few terms of a series.

`phantom` and `neumann`: Geng, Zhang, Bai, Wang, Lin 2021 (2111.05177), sections 3.1 and 3.2.
`one_step`, also called Jacobian-free: Fung et al. 2021 (2103.12803).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.adjoint import BackwardStats, scaled, to_unit_norm, transposed_product
from mdeq_jax.implicit.attach import attach_adjoint
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers import Status
from mdeq_jax.solvers.norms import residuals
from mdeq_jax.tree import PyTree, ravel_batch


def _check(steps: int, tau: float) -> None:
    if steps < 1:
        raise ValueError(f"steps, the number of terms, must be at least 1; got {steps}.")
    if not 0 < tau <= 1:
        raise ValueError(f"tau, the damping, must be in (0, 1]; got {tau}.")


def phantom(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    steps: int = 5,
    tau: float = 0.5,
) -> PyTree:
    """`steps` damped applications z <- (1 - tau) z + tau f(z) from z*, with their own gradient.

    Args:
        f: cell, `f(params, z, x) -> z`.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        backward_stats: accepted as by `ift`; nothing is solved, so it stays zero.
        steps: number of applications; memory grows with it.
        tau: damping, in (0, 1].

    Returns:
        The state after the last application.

    Raises:
        ValueError: `steps` or `tau` out of range.
    """
    _check(steps, tau)

    def apply(z, _):
        return jax.tree.map(lambda a, b: (1 - tau) * a + tau * b, z, f(params, z, x)), None

    start = lax.stop_gradient(z_star)
    start = varying_like(jax.eval_shape(apply, start, None)[0], start)
    return lax.scan(apply, start, length=steps)[0]


def one_step(
    f: Cell, params: PyTree, x: PyTree, z_star: PyTree, backward_stats: BackwardStats | None = None
) -> PyTree:
    """f(params, z*, x) with z* held constant: `phantom` with one undamped step.

    Arguments and result as for `phantom`.
    """
    return f(params, lax.stop_gradient(z_star), x)


def series(product, cotangent: PyTree, *, steps: int, tau: float) -> tuple[PyTree, BackwardStats]:
    """u_k = tau sum_{i<k} (1 - tau + tau J^T)^i g, by damped iteration of the adjoint equation.

    Args:
        product: u -> J^T u.
        cotangent: g.
        steps: k, number of terms.
        tau: damping.

    Returns:
        u_k, like `cotangent`, and the statistics, whose residual is that of u_{k-1}.
    """
    flat, unravel = ravel_batch(cotangent)
    flat, scale = to_unit_norm(flat)

    def term(_, carry):
        u, _ = carry
        fu = ravel_batch(product(unravel(u)))[0] + flat
        _, rel_residual, _ = residuals(u, fu)
        return (1 - tau) * u + tau * fu, rel_residual

    first = varying_like(
        jax.eval_shape(term, 0, (tau * flat, None)), (tau * flat, jnp.ones_like(scale))
    )
    u, rel_residual = lax.fori_loop(1, steps, term, first)
    per_sample = jnp.ones(flat.shape[0], jnp.float32)
    stats = BackwardStats(
        nfe=jnp.float32(steps - 1),
        steps=steps * per_sample,
        rel_residual=rel_residual.astype(jnp.float32),
        status=Status.MAX_STEPS * per_sample,
    )
    return unravel(scaled(u, scale)), stats


def _adjoint(f, params, x, z, _, cotangent, *, steps, tau):
    return series(transposed_product(f, params, z, x), cotangent, steps=steps, tau=tau)


def neumann(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    steps: int = 5,
    tau: float = 0.5,
) -> PyTree:
    """f(params, z*, x), whose gradient uses `steps` terms of a damped Neumann series.

    u = tau * sum_{i < steps} (1 - tau + tau J^T)^i dloss/dz replaces the adjoint solution. This is
    `phantom` to first order at z*, with the memory of `ift`.

    Arguments and errors as for `phantom`; `backward_stats` receives the residual of the adjoint
    equation at the sum of the first `steps - 1` terms.
    """
    _check(steps, tau)
    adjoint = partial(_adjoint, steps=steps, tau=tau)
    return attach_adjoint(f, params, x, z_star, backward_stats, adjoint=adjoint)
