"""Deep supervision: losses at several states on the way to the equilibrium.

The states after chosen solver steps each get a gradient ("indexing"). Their losses are added with
weights that grow towards the end. This is the fixed-point correction of TorchDEQ (Geng, Kolter
2023, 2310.18605; for optical flow Bai, Geng, Savani, Kolter 2022, 2204.08442):

    loss = sum_k w_k loss(z_k),    w_{n-1} = 1.

    states, solution = supervised_states(cell, params, x, z0, steps=(4, 8, 16), f_solver=solver)
    losses = jnp.stack([loss(z) for z in states])
    total = fixed_point_correction(losses, correction_weights("exponential", len(states)))
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from mdeq_jax.implicit.checked_cell import checked_cell
from mdeq_jax.implicit.gradients import GRADIENTS, GradientInfo, gradient_info
from mdeq_jax.implicit.phantom import one_step
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers import Solution, broyden
from mdeq_jax.tree import PyTree, ravel_batch

WEIGHTS = ("constant", "linear", "exponential")


def supervised_states(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z0: PyTree,
    *,
    steps: Sequence[int],
    f_solver: Callable[..., Solution] = broyden,
    gradient: str | Callable[..., PyTree] = one_step,
    step_budget=None,
) -> tuple[tuple[PyTree, ...], Solution]:
    """The states after some steps of one solve, each differentiable in `params` and `x`.

    Args:
        f: cell, `f(params, z, x) -> z`, as for `equilibrium`.
        params: parameters of the cell.
        x: input injection.
        z0: start, leaves `[B, ...]`; it gets no gradient.
        steps: ascending solver steps, at most the solver's `max_steps`. The state of a step is
            the best iterate so far; a sample that ended earlier stays at its last state.
        f_solver: any of `mdeq_jax.solvers`, with its settings bound by `functools.partial`.
        gradient: a name of `GRADIENTS` or one of these functions with its settings bound, applied
            at each state. "one_step" and "phantom" do not assume that the state is an equilibrium.
            "shine", "reversible" and "unroll" are refused.
        step_budget: most forward steps at run time; may be traced (no recompilation).

    Returns:
        One state like `z0` for each of `steps`, one evaluation of f past the solver's (the
        `phantom` gradient: its last application), and the solver's report.

    Raises:
        ValueError: no `steps`, an unknown gradient or one that needs more than a state, or an
            argument that the solver refuses.
    """
    if len(steps) == 0:
        raise ValueError("steps, the supervised solver steps, must not be empty.")
    allowed = sorted(name for name, info in GRADIENTS.items() if _acts_on_a_state(info))
    known = not isinstance(gradient, str) or gradient in GRADIENTS
    if not known or not _acts_on_a_state(gradient_info(gradient)):
        raise ValueError(f"gradient must be one of {allowed}; got {gradient!r}.")
    function = gradient_info(gradient).function if isinstance(gradient, str) else gradient
    f, params, z0, _ = checked_cell(f, params, x, z0)
    flat0, unravel = ravel_batch(z0)
    fixed_params, fixed_x, flat0 = lax.stop_gradient((params, x, flat0))

    def flat_f(z):
        return ravel_batch(f(fixed_params, unravel(z), fixed_x))[0]

    solver = partial(f_solver, record_at=tuple(steps))
    solution = lax.stop_gradient(solver(flat_f, flat0, step_budget=step_budget))
    states = tuple(function(f, params, x, unravel(z)) for z in solution.recorded)
    return states, solution._replace(recorded=())


def _acts_on_a_state(info: GradientInfo) -> bool:
    """Whether a gradient needs nothing but a state, wherever that comes from."""
    return not info.own_iteration and not info.needs_inverse


def correction_weights(kind: str, n: int, gamma: float | None = None) -> np.ndarray:
    """Weights `[n]` of the losses of n states; the last weight is 1.

    Args:
        kind: the weight of state k: "constant": 1; "linear": 1 - gamma (n - k - 1) / n;
            "exponential": gamma^(n - k - 1).
        n: number of states.
        gamma: in [0, 1]; by default 0.9 for "linear" and 0.8 for "exponential". "constant" has
            none.

    Raises:
        ValueError: unknown `kind`, `n` below 1, or `gamma` out of range or without effect.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"kind must be one of {WEIGHTS}; got {kind!r}.")
    if n < 1:
        raise ValueError(f"n, the number of states, must be at least 1; got {n}.")
    to_go = n - 1 - np.arange(n)
    if kind == "constant":
        if gamma is not None:
            raise ValueError(f"gamma={gamma} has no effect on constant weights; leave it out.")
        return np.ones(n)
    if gamma is None:
        gamma = 0.9 if kind == "linear" else 0.8
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1]; got {gamma}.")
    return 1 - gamma * to_go / n if kind == "linear" else float(gamma) ** to_go


def fixed_point_correction(losses: ArrayLike, weights: ArrayLike) -> Array:
    """The weighted sum of the losses of several states.

    Args:
        losses: `[n, ...]`, a loss for each state.
        weights: `[n]`, from `correction_weights`.

    Returns:
        sum_k weights[k] losses[k], of the shape of one loss.

    Raises:
        ValueError: the numbers of weights and losses differ.
    """
    losses = jnp.asarray(losses)
    if losses.ndim == 0 or np.shape(weights) != losses.shape[:1]:
        raise ValueError(
            f"Each loss needs one weight; got losses of shape {losses.shape} and weights of shape "
            f"{np.shape(weights)}."
        )
    return jnp.tensordot(jnp.asarray(weights, losses.dtype), losses, axes=1)
