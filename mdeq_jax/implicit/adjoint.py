"""The linear equations of implicit differentiation, solved with `mdeq_jax.solvers`.

At an equilibrium z = f(z) with Jacobian J = df/dz (Bai, Kolter, Koltun 2019, 1909.01377, theorem 1)

    u = J^T u + dloss/dz         gives the gradient u^T (df/d.) of a loss,
    t = J t + (df/d.) d.         gives the change of z with anything that f depends on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.binding import settings_of
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.solvers.norms import in_float32, safe_norm
from mdeq_jax.tree import PyTree, ravel_batch

LinearMap = Callable[[PyTree], PyTree]


class BackwardStats(NamedTuple):
    """Statistics of the adjoint solve of a backward pass, as float arrays.

    A backward pass can return nothing but gradients. So pass `BackwardStats.zeros(batch)` to
    `equilibrium` and differentiate with respect to it: its "gradient" is the statistics.

    Attributes:
        nfe: scalar, products of the batch with the Jacobian.
        steps: `[B]` step that gave the solution.
        rel_residual: `[B]` relative residual of the adjoint equation.
        status: `[B]` values of `mdeq_jax.solvers.Status`.
    """

    nfe: jax.Array
    steps: jax.Array
    rel_residual: jax.Array
    status: jax.Array

    @classmethod
    def zeros(cls, batch: int) -> "BackwardStats":
        """The value to differentiate with respect to, for a batch of this size."""
        per_sample = jnp.zeros(batch, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), per_sample, per_sample, per_sample)

    @classmethod
    def of(cls, solution: Solution) -> "BackwardStats":
        """The statistics of a solver's report."""
        fields = (solution.nfe, solution.steps, solution.rel_residual, solution.status)
        return cls(*(field.astype(jnp.float32) for field in fields))


# Solves the adjoint equation: (u -> J^T u, dloss/dz) -> (u, statistics).
Solve = Callable[[LinearMap, PyTree], tuple[PyTree, BackwardStats]]


def solve_linear(
    product: LinearMap, constant: PyTree, solver: Callable[..., Solution], start: PyTree = None
) -> tuple[PyTree, Solution]:
    """Solves u = product(u) + constant with one of `mdeq_jax.solvers`, from zero or `start`.

    It solves for the constant of each sample scaled to a norm in [1, 2), and scales back. An
    absolute tolerance counts in units of the constant's norm. So the solution is linear in the
    constant under either `stop_mode`, however small the loss. It is NaN for a sample whose constant
    is not finite.
    """
    flat, unravel = ravel_batch(constant)
    finite = jnp.all(jnp.isfinite(flat), axis=1)
    flat, scale = to_unit_norm(flat)
    bound = settings_of(solver)
    if start is None:
        start = jnp.zeros_like(flat)
        if "fz0" in bound:  # a solver of this package, which need not evaluate the map at zero
            solver = partial(solver, fz0=flat)
    else:
        start = scaled(ravel_batch(start)[0], 1 / scale)

    def affine(u):
        return ravel_batch(product(unravel(u)))[0] + flat

    if bound.get("stop_mode") == "abs" and "tol" in bound:
        solver = partial(solver, tol=bound["tol"] * jnp.maximum(safe_norm(flat), 1))
    solution = solver(affine, start)
    solution = solution._replace(
        # The solver's best iterate, zero, would hide that there is no solution.
        z=scaled(solution.z, jnp.where(finite, scale, jnp.nan)),
        residual=solution.residual * scale,
        abs_trace=solution.abs_trace * scale[None],
    )
    return unravel(solution.z), solution


def to_unit_norm(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each sample of `[B, D]` over the power of two that brings its norm into [1, 2).

    Returns:
        `[B, D]`, and `[B]` the power of two, in float32 or better; 1 for a norm of zero, or one
        that is not finite. Dividing by it rounds nothing.
    """
    norm = lax.stop_gradient(safe_norm(flat))
    info = jnp.finfo(norm.dtype)
    usable = (norm >= float(info.tiny)) & jnp.isfinite(norm)
    exponent = jnp.frexp(jnp.where(usable, norm, 1))[1] - 1
    # Its inverse must be a normal number too.
    scale = jnp.ldexp(jnp.ones_like(norm), jnp.clip(exponent, info.minexp + 2, info.maxexp - 3))
    return scaled(flat, 1 / scale), scale


def scaled(flat: jax.Array, scale: jax.Array) -> jax.Array:
    """Each sample of `[B, D]` times its number, in the type of `flat`."""
    return (in_float32(flat) * scale[:, None]).astype(flat.dtype)


def transposed_product(f: Cell, params: PyTree, z: PyTree, x: PyTree) -> LinearMap:
    """u -> J^T u for the Jacobian of `f` with respect to z."""
    _, pullback = jax.vjp(lambda z: f(params, z, x), z)
    return lambda u: pullback(u)[0]


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
    return solve_linear(transposed_product(f, params, z, x), cotangent, b_solver)


def solve_tangent(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z: PyTree,
    params_tangent: PyTree,
    x_tangent: PyTree,
    *,
    solver=broyden,
) -> tuple[PyTree, Solution]:
    """The directional derivative of the equilibrium.

    It replaces forward mode, which `equilibrium` does not support, and solves
    t = J t + (df/dparams) params_tangent + (df/dx) x_tangent at the equilibrium `z`. Every product
    takes two reverse passes, so it also works for cells with hand-written reverse rules
    (`jax.custom_vjp`), such as the models' convolutions on CPUs.

    Args:
        f: cell, `f(params, z, x) -> z`.
        params: parameters of the cell.
        x: input injection.
        z: equilibrium; leaves `[B, ...]`.
        params_tangent: direction, like `params`.
        x_tangent: direction, like `x`; for leaves without a derivative it is ignored.
        solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`.

    Returns:
        t, like `z`, and the solver's report.
    """
    value, pullback = jax.vjp(f, params, z, x)
    # The pullback is linear: its own pullback, at any point, is the product with the Jacobian.
    _, pushforward = jax.vjp(pullback, value)
    zeros = jax.tree.map(jnp.zeros_like, (params, z, x))
    constant = pushforward((params_tangent, zeros[1], x_tangent))[0]
    return solve_linear(lambda t: pushforward((zeros[0], t, zeros[2]))[0], constant, solver)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def implicit_adjoint(
    f: Cell, solve: Solve, params: PyTree, x: PyTree, z: PyTree, cotangent: PyTree
) -> tuple[PyTree, BackwardStats]:
    """`solve`'s solution of u = J^T u + cotangent, with the derivatives of the exact solution.

    These derivatives are adjoint equations too, which `solve` solves. So no order of derivative
    goes through a solver's loop.
    """
    return solve(transposed_product(f, params, z, x), cotangent)


def _forward(f, solve, params, x, z, cotangent):
    solved: Any = implicit_adjoint(f, solve, params, x, z, cotangent)
    u, stats = solved
    return (u, stats), (params, x, z, u)


def _backward(f, solve, saved, cotangents):
    params, x, z, u = saved

    def transposed(args, u, _):
        """J^T u: a "cell" with the state u, whose adjoint equation is w = J w + du."""
        params, x, z = args
        return transposed_product(f, params, z, x)(u)

    solved: Any = implicit_adjoint(transposed, solve, (params, x, z), (), u, cotangents[0])
    w, _ = solved
    # du = (I - J^T)^-1 (dJ^T u + dg) for u = (I - J^T)^-1 g: pull w back through J^T u.
    _, pullback = jax.vjp(lambda args: transposed(args, u, ()), (params, x, z))
    return *pullback(w)[0], w


implicit_adjoint.defvjp(_forward, _backward)
