"""The equilibrium of a cell as a differentiable function of its parameters and input."""

from collections.abc import Callable
from functools import partial
from typing import Literal, overload

import jax
import numpy as np
from jax import lax

from mdeq_jax.implicit.adjoint import BackwardStats
from mdeq_jax.implicit.binding import unbound
from mdeq_jax.implicit.checked_cell import checked_cell
from mdeq_jax.implicit.gradients import bind_b_solver, gradient_info
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree, ravel_batch


@overload
def equilibrium(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    *,
    f_solver: Callable[..., Solution] = ...,
    b_solver: Callable[..., Solution] | None = ...,
    gradient: str | Callable[..., PyTree] = ...,
    step_budget: int | jax.Array | None = ...,
    backward_stats: BackwardStats | None = ...,
    has_aux: Literal[False] = ...,
    trace: Callable | None = ...,
) -> tuple[PyTree, Solution]: ...


@overload
def equilibrium(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    *,
    f_solver: Callable[..., Solution] = ...,
    b_solver: Callable[..., Solution] | None = ...,
    gradient: str | Callable[..., PyTree] = ...,
    step_budget: int | jax.Array | None = ...,
    backward_stats: BackwardStats | None = ...,
    has_aux: Literal[True],
    trace: Callable | None = ...,
) -> tuple[PyTree, Solution, PyTree]: ...


def equilibrium(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    *,
    f_solver: Callable[..., Solution] = broyden,
    b_solver: Callable[..., Solution] | None = None,
    gradient: str | Callable[..., PyTree] = "ift",
    step_budget: int | jax.Array | None = None,
    backward_stats: BackwardStats | None = None,
    has_aux: bool = False,
    trace: Callable | None = None,
) -> tuple[PyTree, Solution] | tuple[PyTree, Solution, PyTree]:
    """Finds z = f(params, z, x) and makes it differentiable in `params` and `x`.

        solver = partial(anderson, max_steps=50, tol=1e-5)
        z, solution = equilibrium(cell, params, x, jnp.zeros((batch, width)), f_solver=solver)

    The state is any pytree with a leading batch axis. One sample's state must not influence
    another's. `f` may close over values that are being differentiated; they get gradients as
    `params` do. A `FixedPointProblem` is unpacked: `equilibrium(*problem)`.

    | gradient       | definition                                     | again         | forward |
    |----------------|------------------------------------------------|---------------|---------|
    | `"ift"`        | exact at an equilibrium: one linear solve      | any order     | no      |
    | `"phantom"`    | k damped steps past it, differentiated         | of the steps  | yes     |
    | `"neumann"`    | k terms of the linear equation's series        | of the terms  | no      |
    | `"one_step"`   | one term                                       | of the step   | yes     |
    | `"shine"`      | the forward Broyden solve's inverse estimate   | refused       | no      |
    | `"reversible"` | k steps without a solver, states reconstructed | refused       | no      |
    | `"unroll"`     | k steps without a solver, states kept          | any order     | yes     |

    "Again" is a gradient of the gradient (reverse over reverse); if refused, it raises
    NotImplementedError. If forward mode (`jax.jvp`, `jax.linearize`, `jax.hessian`) is unavailable,
    JAX raises a TypeError about `custom_vjp`. `solve_tangent` computes the directional derivative
    of an equilibrium.

    Args:
        f: cell, `f(params, z, x) -> z`, which keeps the structure, shapes and types of z.
        params: parameters of the cell.
        x: input injection. Like `params`, any pytree; masks (bool) and token ids (integers) may be
            among its leaves.
        z0: start, leaves `[B, ...]`; it gets no gradient.
        f_solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`.
            "reversible" and "unroll" do not use it; "shine" needs `broyden`.
        b_solver: the same for the adjoint equation, by default `broyden`. Only gradients that
            solve this equation use it: "ift", refined "shine", and a function with a parameter
            `b_solver`.
        gradient: a name of `GRADIENTS`, or one of their functions with its settings bound,
            `partial(phantom, steps=3, tau=0.8)`, or any function that is called like `ift`.
        step_budget: most forward steps at run time; may be traced (no recompilation).
        backward_stats: `BackwardStats.zeros(B)`, to differentiate with respect to; see there.
        has_aux: whether f returns `(z, aux)`, aux being any pytree of arrays.
        trace: function of (step, z like `z0`, residual `[B]`) that the host calls at the forward
            solver's start and after each step, through `jax.debug.callback`. The residual is that
            of the solver's `stop_mode`. "unroll" and "reversible", which have no solver, call it
            at each state that the report has a row for.

    Returns:
        The state, one evaluation of f past the solver's (the `phantom` gradient: its last
        application), and the solver's report. The report's `z` is the flat `[B, D]` state before
        that evaluation. With `has_aux` also aux at the report's `z`, where f is evaluated last (the
        `phantom` gradient: its first application). It gets no gradient, because the report's `z`
        has none. For an aux with a gradient, evaluate f at the returned state:
        `f(params, z, x)[1]`.

    Raises:
        TypeError: f changes the type of a leaf of the state, `z0` has other leaves than
            floating-point arrays, or a solver is not a function.
        ValueError: f changes the structure or a shape of the state, an unknown gradient, a solver
            that "shine" cannot use, a `b_solver` that the gradient has already or does not take, or
            an argument that the solver or the gradient refuses.
    """
    for name, solver in (("f_solver", f_solver), ("b_solver", b_solver)):
        if solver is not None and not callable(solver):
            raise TypeError(
                f"{name} must be a function of mdeq_jax.solvers, for example "
                f"partial(broyden, max_steps=30); got {solver!r}."
            )
    info = gradient_info(gradient)
    function = info.function if isinstance(gradient, str) else gradient
    function = bind_b_solver(function, b_solver)
    cell = checked_cell(f, params, x, z0, has_aux=has_aux)
    f, params, z0 = cell.f, cell.params, cell.z0
    if info.own_iteration:
        if trace is not None:
            function = partial(function, trace=trace)
        z, solution = function(f, params, x, z0, backward_stats, step_budget=step_budget)
    else:
        solution = _solve(f, params, x, z0, f_solver, info, step_budget, trace)
        if info.needs_inverse:
            function = partial(function, inverse=solution.inverse)
            solution = solution._replace(inverse=())  # else the report keeps the history alive
        unravel = ravel_batch(z0)[1]
        z = function(f, params, x, unravel(solution.z), backward_stats)
    if cell.aux is None:
        return z, solution
    at = ravel_batch(z0)[1](solution.z)
    return z, solution, lax.stop_gradient(cell.aux(*lax.stop_gradient((params, at, x))))


def _solve(f, params, x, z0, f_solver, info, step_budget, trace) -> Solution:
    flat0, unravel = ravel_batch(z0)
    fixed_params, fixed_x = lax.stop_gradient((params, x))

    def flat_f(z):
        return ravel_batch(f(fixed_params, unravel(z), fixed_x))[0]

    if info.needs_inverse:
        f_solver = _keeping_inverse(f_solver, info.function)
    if trace is not None:
        on_host: Callable = unravel  # with NumPy arrays, as JAX must not compute in a callback
        f_solver = partial(
            f_solver, trace=lambda step, z, r: trace(step, on_host(np.asarray(z)), r)
        )
    return lax.stop_gradient(f_solver(flat_f, flat0, step_budget=step_budget))


def _keeping_inverse(f_solver: Callable, gradient: Callable) -> Callable[..., Solution]:
    """`f_solver`, which must be Broyden's method, with its inverse estimate kept."""
    if unbound(f_solver) is not broyden:
        name = getattr(unbound(f_solver), "__name__", repr(f_solver))
        raise ValueError(
            f"The {gradient.__name__!r} gradient needs the inverse estimate of the forward Broyden "
            f"solve: f_solver must be mdeq_jax.solvers.broyden (or a partial of it); got {name}. "
            "Choose it, or another gradient."
        )
    return partial(f_solver, keep_inverse=True)
