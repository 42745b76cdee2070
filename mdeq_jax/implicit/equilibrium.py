"""The equilibrium of a cell as a differentiable function of its parameters and input."""

from collections.abc import Callable
from functools import partial

from jax import lax

from mdeq_jax.implicit.adjoint import BackwardStats, Cell
from mdeq_jax.implicit.ift import ift
from mdeq_jax.implicit.phantom import neumann, one_step, phantom
from mdeq_jax.implicit.reversible import reversible
from mdeq_jax.implicit.shine import shine
from mdeq_jax.implicit.unroll import unroll
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree, ravel_batch

GRADIENTS = {
    "ift": ift,
    "phantom": phantom,
    "neumann": neumann,
    "one_step": one_step,
    "shine": shine,
    "reversible": reversible,
    "unroll": unroll,
}
SOLVE_BACKWARD = (ift, shine)  # take a `b_solver`
OWN_ITERATION = (reversible, unroll)  # find the state themselves


def equilibrium(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    *,
    f_solver: Callable[..., Solution] = broyden,
    b_solver: Callable[..., Solution] = broyden,
    gradient: str | Callable[..., PyTree] = "ift",
    step_budget=None,
    stats: BackwardStats | None = None,
) -> tuple[PyTree, Solution]:
    """Finds z = f(params, z, x) and makes it differentiable in `params` and `x`.

        solver = partial(anderson, max_steps=50, tol=1e-5)
        z, solution = equilibrium(cell, params, x, jnp.zeros((batch, width)), f_solver=solver)

    The state is any pytree with a leading batch axis, and one sample's state must not influence
    another's. `f` must not close over values that are being differentiated: pass them in `params`
    or `x`.

    =============  =================================================  ===================  =======
    gradient       what it is                                         again (grad of grad)  forward
    =============  =================================================  ===================  =======
    "ift"          exact at an equilibrium: one linear solve          exact, any order      no
    "phantom"      k damped steps past it, differentiated             of these steps        yes
    "neumann"      k terms of the linear equation's series            of these terms        no
    "one_step"     one term                                           of this step          yes
    "shine"        the linear solve by forward Broyden's estimate     refused               no
    "reversible"   k steps without a solver, rebuilt backwards        refused               no
    "unroll"       k steps without a solver, kept                     exact for the steps   yes
    =============  =================================================  ===================  =======

    "Again" is reverse mode over reverse mode. Where it is refused there is a NotImplementedError;
    forward mode (`jax.jvp`, `jax.linearize`, `jax.hessian`), where it is not to be had, is JAX's
    TypeError about `custom_vjp`: `solve_tangent` is the directional derivative of an equilibrium.

    Args:
        f: cell, `f(params, z, x) -> z`, which keeps the structure, shapes and types of z.
        params: parameters of the cell.
        x: input injection. Like `params`, any pytree; masks (bool) and token numbers (integers) may
            be among its leaves.
        z0: start, leaves `[B, ...]`; it gets no gradient.
        f_solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`; not
            used by "reversible" and "unroll". "shine" needs `broyden`.
        b_solver: the same for the adjoint equation; used by "ift" and refined "shine" only.
        gradient: a name of `GRADIENTS`, or one of these functions with its settings bound,
            `partial(phantom, steps=3, tau=0.8)`.
        step_budget: most forward steps at run time; may be traced (no recompilation).
        stats: `BackwardStats.zeros(B)`, to differentiate with respect to: see there.

    Returns:
        The state, one evaluation of f past the solver's (`phantom`: its last application), and
        the solver's report, whose `z` is the flat `[B, D]` state before that evaluation.

    Raises:
        ValueError: unknown gradient, a solver that "shine" cannot use, or what the solver and the
            gradient refuse.
    """
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {sorted(GRADIENTS)}; got {gradient!r}.")
        gradient = GRADIENTS[gradient]
        if gradient in SOLVE_BACKWARD:
            gradient = partial(gradient, b_solver=b_solver)
    z0 = lax.stop_gradient(z0)
    if unbound(gradient) in OWN_ITERATION:
        return gradient(f, params, x, z0, stats, step_budget=step_budget)

    flat0, unravel = ravel_batch(z0)
    fixed_params, fixed_x = lax.stop_gradient((params, x))

    def flat_f(z):
        return ravel_batch(f(fixed_params, unravel(z), fixed_x))[0]

    if unbound(gradient) is shine:
        if unbound(f_solver) is not broyden:
            name = getattr(unbound(f_solver), "__name__", repr(f_solver))
            raise ValueError(
                "The 'shine' gradient takes the inverse estimate of the forward Broyden solve: "
                f"f_solver must be mdeq_jax.solvers.broyden (or a partial of it); got {name}. "
                "Choose it, or another gradient."
            )
        f_solver = partial(f_solver, keep_inverse=True)
    solution = lax.stop_gradient(f_solver(flat_f, flat0, step_budget=step_budget))
    if unbound(gradient) is shine:
        gradient = partial(gradient, inverse=solution.inverse)
        solution = solution._replace(inverse=())  # or the report would keep the history alive
    return gradient(f, params, x, unravel(solution.z), stats), solution


def unbound(function: Callable) -> Callable:
    """The function that nested `functools.partial`s bind settings of."""
    while isinstance(function, partial):
        function = function.func
    return function
