"""The equilibrium of a cell as a differentiable function of its parameters and input."""

from collections.abc import Callable
from functools import partial

from jax import lax

from mdeq_jax.implicit.ift import BackwardStats, Cell, ift
from mdeq_jax.implicit.phantom import neumann, one_step, phantom
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree, ravel_batch

GRADIENTS = {"ift": ift, "phantom": phantom, "neumann": neumann, "one_step": one_step}


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
    or `x`. Reverse mode only, to any order for "phantom" and "one_step"; forward mode (`jax.jvp`)
    of the default gradient is refused by JAX, as of every `jax.custom_vjp`.

    Args:
        f: cell, `f(params, z, x) -> z`, which keeps the structure, shapes and types of z.
        params: parameters of the cell.
        x: input injection.
        z0: start, leaves `[B, ...]`; it gets no gradient.
        f_solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`.
        b_solver: the same for the adjoint equation; used by the "ift" gradient only.
        gradient: "ift" (exact), "phantom", "neumann" or "one_step", or one of these functions
            with its settings bound, `partial(phantom, steps=3, tau=0.8)`.
        step_budget: most forward steps at run time; may be traced (no recompilation).
        stats: `BackwardStats.zeros(B)`, to differentiate with respect to: see there.

    Returns:
        The state, one evaluation of f past the solver's (`phantom`: its last application), and
        the solver's report, whose `z` is the flat `[B, D]` state before that evaluation.

    Raises:
        ValueError: unknown gradient, or what the solver and the gradient refuse.
    """
    if gradient == "ift":
        gradient = partial(ift, b_solver=b_solver)
    elif isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {sorted(GRADIENTS)}; got {gradient!r}.")
        gradient = GRADIENTS[gradient]
    flat0, unravel = ravel_batch(z0)
    fixed_params, fixed_x, flat0 = lax.stop_gradient((params, x, flat0))

    def flat_f(z):
        return ravel_batch(f(fixed_params, unravel(z), fixed_x))[0]

    solution = lax.stop_gradient(f_solver(flat_f, flat0, step_budget=step_budget))
    return gradient(f, params, x, unravel(solution.z), stats), solution
