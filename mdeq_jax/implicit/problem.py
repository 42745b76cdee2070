"""A fixed-point problem: a cell, and everything that it is applied to."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mdeq_jax.tree import PyTree, ravel_batch

Cell = Callable[[PyTree, PyTree, PyTree], PyTree]  # f(params, z, x) -> z


class FixedPointProblem(NamedTuple):
    """Find z with z = f(params, z, x), starting from z0.

    A model with an equilibrium returns one from `fixed_point_problem(variables, inputs)`. The
    fields are in the order that `equilibrium` and the gradients take them, so
    `equilibrium(*problem, f_solver=solver)` solves it.

    Attributes:
        f: cell, `f(params, z, x) -> z`, which keeps the structure, shapes and types of z.
        params: parameters of the cell.
        x: input injection, any pytree.
        z0: start; leaves `[B, ...]`.
    """

    f: Cell
    params: PyTree
    x: PyTree
    z0: PyTree

    def evaluate(self, z: PyTree) -> PyTree:
        """f(params, z, x) of a state like `z0`."""
        return self.f(self.params, z, self.x)

    def unravel(self, flat: jax.Array) -> PyTree:
        """The state like `z0` that a `[B, D]` array, such as `Solution.z`, holds."""
        return ravel_batch(self.z0)[1](flat)


def problem_at(
    f: Cell | FixedPointProblem, params: PyTree, x: PyTree, z: PyTree
) -> FixedPointProblem:
    """The problem with the state `z` as its `z0`, from its parts or from a whole problem.

    Args:
        f: cell, or a problem, which brings its own `params` and `x`.
        params: parameters of the cell; None with a problem.
        x: input injection; None with a problem.
        z: state; None with a problem stands for its `z0`.

    Raises:
        TypeError: a cell without a state, or a problem together with `params` or `x`.
    """
    if not isinstance(f, FixedPointProblem):
        if z is None:
            raise TypeError("Give the cell's params, x and state z, or a FixedPointProblem.")
        return FixedPointProblem(f, params, x, z)
    if params is not None or x is not None:
        raise TypeError(
            "A FixedPointProblem brings its own params and x. Pass the state by name: z=..."
        )
    return f if z is None else f._replace(z0=z)
