"""The implicit function theorem: an exact gradient from one linear solve.

Bai, Kolter, Koltun 2019, 1909.01377, theorem 1; see `mdeq_jax.implicit.adjoint`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from mdeq_jax.implicit.adjoint import (
    BackwardStats,
    implicit_adjoint,
    solve_linear,
)
from mdeq_jax.implicit.attach import attach_adjoint
from mdeq_jax.implicit.fallback import check_unconverged, fall_back
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree


def _solve(product, cotangent, *, b_solver, unconverged):
    u, solution = solve_linear(product, cotangent, b_solver)
    u = fall_back(unconverged, product, cotangent, u, solution)
    return u, BackwardStats.of(solution)


def _adjoint(f, params, x, z, _, cotangent, *, solve):
    return implicit_adjoint(f, solve, params, x, z, cotangent)


def ift(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    backward_stats: BackwardStats | None = None,
    *,
    b_solver: Callable[..., Solution] = broyden,
    linearize_at: str = "z_star",
    unconverged: str = "damped",
) -> PyTree:
    """One evaluation of f at z*, whose gradient is that of the equilibrium.

    Only (params, x, z*) are kept for the backward pass, however the solver found z*. Gradients of
    the gradient are exact too, to any order: `b_solver` solves their linear equations, and nothing
    is differentiated through its loop.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        backward_stats: see `BackwardStats`.
        b_solver: solver of the adjoint equation, settings bound by `functools.partial`.
        linearize_at: where the backward pass takes the Jacobian: "z_star", as the original code,
            or "f_z_star", one evaluation closer to the equilibrium.
        unconverged: treatment of a sample whose adjoint solve ended farther from a solution than
            it began, with a residual over |dloss/dz|. "keep" uses its u as it is. "damped" replaces
            it with five terms of the damped Neumann series. "cap" limits its norm to ten times
            |dloss/dz|. Without such a sample nothing is computed. `backward_stats` reports the
            solve itself in any case. Higher derivatives follow the same rule.

    Returns:
        f(params, z*, x).

    Raises:
        ValueError: unknown `linearize_at` or `unconverged`.
    """
    check_unconverged(unconverged)
    solve = partial(_solve, b_solver=b_solver, unconverged=unconverged)
    adjoint: Any = partial(_adjoint, solve=solve)
    return attach_adjoint(
        f, params, x, z_star, backward_stats, adjoint=adjoint, linearize_at=linearize_at
    )
