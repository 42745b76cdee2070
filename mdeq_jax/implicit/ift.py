"""The implicit function theorem: an exact gradient from one linear solve.

At an equilibrium z = f(z) the derivative of a loss with respect to anything that f depends on is
u^T (df/d.), where u solves the adjoint equation (Bai, Kolter, Koltun 2019, 1909.01377, theorem 1)

    u = J^T u + dloss/dz,    J = df/dz.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree, ravel_batch

LINEARIZE_AT = ("z_star", "f_z_star")

Cell = Callable[[PyTree, PyTree, PyTree], PyTree]  # f(params, z, x) -> z


class BackwardStats(NamedTuple):
    """How the adjoint solve of a backward pass went, as float arrays.

    A backward pass has no other way out than gradients: hand `BackwardStats.zeros(batch)` to
    `equilibrium` and differentiate with respect to it; its "gradient" is the statistics.

    Attributes:
        nfe: scalar, products with the Jacobian on the batch.
        steps: `[B]` the step that gave the solution.
        rel_residual: `[B]` relative residual of the adjoint equation.
        status: `[B]` values of `mdeq_jax.solvers.Status`.
    """

    nfe: jax.Array
    steps: jax.Array
    rel_residual: jax.Array
    status: jax.Array

    @classmethod
    def zeros(cls, batch: int) -> "BackwardStats":
        """The placeholder to differentiate with respect to, for a batch of this size."""
        per_sample = jnp.zeros(batch, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), per_sample, per_sample, per_sample)

    @classmethod
    def of(cls, solution: Solution) -> "BackwardStats":
        """The statistics of a solver's report."""
        fields = (solution.nfe, solution.steps, solution.rel_residual, solution.status)
        return cls(*(field.astype(jnp.float32) for field in fields))


# (u -> J^T u, dloss/dz) -> (u, how it went): how the adjoint equation is solved.
Adjoint = Callable[[Callable[[PyTree], PyTree], PyTree], tuple[PyTree, BackwardStats]]


def adjoint_solution(pullback, cotangent: PyTree, b_solver) -> tuple[PyTree, Solution]:
    """Solves u = pullback(u) + cotangent with `b_solver`, from zero."""
    flat, unravel = ravel_batch(cotangent)

    def adjoint_map(u):
        return ravel_batch(pullback(unravel(u)))[0] + flat

    solution = b_solver(adjoint_map, jnp.zeros_like(flat))
    return unravel(solution.z), solution


def solve_adjoint(
    f: Cell, params: PyTree, x: PyTree, z: PyTree, cotangent: PyTree, *, b_solver=broyden
) -> tuple[PyTree, Solution]:
    """Solves u = J^T u + cotangent for the Jacobian J of `f` with respect to z, at `z`.

    Args:
        f: cell, `f(params, z, x) -> z`.
        params: parameters of the cell.
        x: input injection.
        z: state at which `f` is linearised; leaves `[B, ...]`.
        cotangent: gradient of the loss with respect to the state, like `z`.
        b_solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`.

    Returns:
        u, like `z`, and the solver's report.
    """
    _, pullback = jax.vjp(lambda z: f(params, z, x), z)
    return adjoint_solution(lambda u: pullback(u)[0], cotangent, b_solver)


def _solver_adjoint(pullback, cotangent, *, b_solver):
    u, solution = adjoint_solution(pullback, cotangent, b_solver)
    return u, BackwardStats.of(solution)


def ift(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    stats: BackwardStats | None = None,
    *,
    b_solver: Callable[..., Solution] = broyden,
    linearize_at: str = "z_star",
) -> PyTree:
    """One evaluation of f at z*, whose gradient is that of the equilibrium.

    Only (params, x, z*) are kept for the backward pass, whatever the solver did to find z*.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        stats: see `BackwardStats`.
        b_solver: solver of the adjoint equation, settings bound by `functools.partial`.
        linearize_at: where the backward pass takes the Jacobian: "z_star", as the original code,
            or "f_z_star", one evaluation closer to the equilibrium.

    Returns:
        f(params, z*, x).

    Raises:
        ValueError: unknown `linearize_at`.
    """
    if linearize_at not in LINEARIZE_AT:
        raise ValueError(f"linearize_at must be one of {LINEARIZE_AT}; got {linearize_at!r}.")
    adjoint = partial(_solver_adjoint, b_solver=b_solver)
    return attach_adjoint(f, params, x, z_star, stats, adjoint=adjoint, linearize_at=linearize_at)


def attach_adjoint(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    stats: BackwardStats | None,
    *,
    adjoint: Adjoint,
    linearize_at: str = "z_star",
) -> PyTree:
    """f(params, z*, x), with `adjoint` to turn dloss/dz into u in the backward pass."""
    if stats is None:
        stats = BackwardStats.zeros(jax.tree.leaves(z_star)[0].shape[0])
    z_star = jax.lax.stop_gradient(z_star)
    return _attach(f, adjoint, linearize_at, params, x, z_star, stats)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attach(f, adjoint, linearize_at, params, x, z_star, stats):
    return f(params, z_star, x)


def _attach_forward(f, adjoint, linearize_at, params, x, z_star, stats):
    value = f(params, z_star, x)
    return value, (params, x, z_star if linearize_at == "z_star" else value)


def _attach_backward(f, adjoint, linearize_at, saved, cotangent):
    params, x, point = saved
    _, pullback = jax.vjp(f, params, point, x)
    u, stats = adjoint(lambda u: pullback(u)[1], cotangent)
    d_params, _, d_x = pullback(u)
    return d_params, d_x, jax.tree.map(jnp.zeros_like, point), stats


_attach.defvjp(_attach_forward, _attach_backward)
