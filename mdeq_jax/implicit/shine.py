"""SHINE: the forward solve's inverse estimate replaces the backward solve.

Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau 2021 (2106.00553). Broyden's forward solve ends with an
estimate H of (J - I)^-1. The adjoint equation's solution is u = (I - J^T)^-1 g, so the estimate

    u = -H^T g

costs no product with the Jacobian. "Refined", it is the start of an ordinary backward solve of a
few steps.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from mdeq_jax.implicit.adjoint import (
    BackwardStats,
    scaled,
    solve_linear,
    to_unit_norm,
    transposed_product,
)
from mdeq_jax.implicit.attach import attach_adjoint, first_order_only
from mdeq_jax.implicit.fallback import check_unconverged, fall_back
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers import InverseEstimate, Solution, Status, broyden, transposed_inverse_product
from mdeq_jax.solvers.norms import residuals
from mdeq_jax.tree import PyTree, ravel_batch


def _adjoint(f, params, x, z, inverse, cotangent, *, refine_steps, unconverged, b_solver):
    params, x, z, inverse, cotangent = first_order_only(
        (params, x, z, inverse, cotangent), "shine", "the 'ift' gradient"
    )
    product = transposed_product(f, params, z, x)
    flat, unravel = ravel_batch(cotangent)
    flat, scale = to_unit_norm(flat)
    flat_u = -transposed_inverse_product(inverse, flat)
    u = unravel(scaled(flat_u, scale))
    if refine_steps:
        solver = partial(b_solver, max_steps=refine_steps)
        u, solution = solve_linear(product, cotangent, solver, start=u)
        u = fall_back(unconverged, product, cotangent, u, solution)
        return u, BackwardStats.of(solution)
    # Pulling u back to the parameters computes the product that the residual needs anyway.
    fu = scaled(ravel_batch(product(u))[0], 1 / scale) + flat
    _, rel_residual, _ = residuals(flat_u, fu)
    zeros = BackwardStats.zeros(flat.shape[0])
    stats = zeros._replace(
        rel_residual=rel_residual.astype(jnp.float32), status=zeros.status + Status.MAX_STEPS
    )
    return u, stats


def shine(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    inverse: InverseEstimate | None = None,
    refine_steps: int = 0,
    unconverged: str = "keep",
    b_solver: Callable[..., Solution] = broyden,
) -> PyTree:
    """f(params, z*, x), whose gradient uses Broyden's inverse estimate as the inverse Jacobian.

    The estimate, and with it every step of the forward solve (`max_steps` states), is kept until
    the backward pass. The other gradients free it as soon as the equilibrium is found. Its quality
    depends on the problem; `backward_stats` reports the residual of the u in use. Gradients of the
    gradient are refused.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        backward_stats: see `BackwardStats`.
        inverse: estimate of the forward solve, `broyden(..., keep_inverse=True).inverse`;
            `equilibrium` supplies it.
        refine_steps: steps of a backward solve that starts from the estimate's u.
        unconverged: as for `ift`, for samples that these steps leave far from a solution.
        b_solver: solver of these steps, settings bound by `functools.partial`; `refine_steps`
            replaces its `max_steps`.

    Returns:
        f(params, z*, x).

    Raises:
        ValueError: `inverse` is missing, `refine_steps` is negative, or `unconverged` is unknown
            or without effect.
        NotImplementedError: the gradient is differentiated.
    """
    if inverse is None:
        raise ValueError(
            "The 'shine' gradient needs the inverse estimate of a forward Broyden solve: call it "
            "through equilibrium(..., f_solver=broyden, gradient='shine'), or pass "
            "inverse=broyden(..., keep_inverse=True).inverse."
        )
    if refine_steps < 0:
        raise ValueError(f"refine_steps must not be negative; got {refine_steps}.")
    check_unconverged(unconverged)
    if unconverged != "keep" and not refine_steps:
        raise ValueError(
            f"unconverged={unconverged!r} has no effect on an estimate that is not refined: set "
            "refine_steps, or leave it out."
        )
    adjoint = partial(
        _adjoint, refine_steps=refine_steps, unconverged=unconverged, b_solver=b_solver
    )
    return attach_adjoint(f, params, x, z_star, backward_stats, adjoint=adjoint, extra=inverse)
