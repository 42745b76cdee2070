"""What language models share: their output, and the forward pass around an equilibrium."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import BackwardStats, FixedPointProblem, equilibrium, optional_jacobian_loss
from mdeq_jax.layers.adaptive_softmax import TokenDistribution
from mdeq_jax.models.output import ForwardOptions
from mdeq_jax.solvers import Solution


class Segment(NamedTuple):
    """Inputs of a language model as one pytree.

    Attributes:
        tokens: `[B, T]` int ids.
        memory: `memory` of the output for the segment before; None: there is none.
    """

    tokens: jax.Array
    memory: Any = None


def as_segment(inputs: Any, memory: Any = None) -> Segment:
    """A segment from one, or from token ids and a memory."""
    return inputs if isinstance(inputs, Segment) else Segment(inputs, memory)


class LanguageOutput(NamedTuple):
    """The result of a forward pass: the fields of `ModelOutput`, and the memory.

    Attributes:
        logits: the distribution of the next token, not yet evaluated.
        solution: report of the forward solver; None if none ran.
        z_star: state that the output layer read. In training it is one evaluation of the cell past
            the solver's state; in evaluation it is the solver's state.
        jacobian_loss: scalar; zero unless asked for.
        memory: what the next segment is to be given; carries no gradient.
    """

    logits: TokenDistribution
    solution: Solution | None = None
    z_star: Any = None
    jacobian_loss: jax.Array | float = 0.0
    memory: Any = None


class EquilibriumSolver:
    """The method `solve` of a module with the fields `f_solver` and `gradient`."""

    f_solver: Callable[..., Solution]
    gradient: Callable[..., Any]

    @nn.nowrap
    def solve(
        self,
        problem: FixedPointProblem,
        *,
        f_solver: Callable[..., Solution] | None = None,
        step_budget: int | jax.Array | None = None,
        backward_stats: BackwardStats | None = None,
    ) -> tuple[Any, Solution]:
        """`equilibrium` of a problem with this model's gradient and solver (or another)."""
        return equilibrium(
            *problem,
            f_solver=f_solver or self.f_solver,
            gradient=self.gradient,
            step_budget=step_budget,
            backward_stats=backward_stats,
        )


def run_problem(
    problem: FixedPointProblem, solve, forward: ForwardOptions, *, train: bool
) -> tuple[Any, Any, Solution | None]:
    """Solves a problem, or applies its cell `forward.pretraining_layers` times.

    Args:
        problem: of one forward pass.
        solve: the model's `solve`.
        forward: settings of the pass.
        train: whether the result is one differentiable evaluation past the solver's state.

    Returns:
        The state to read, the state that the solver found, and its report.

    Raises:
        ValueError: fewer than one layer.
    """
    layers = forward.pretraining_layers
    if layers is not None:
        if layers < 1:
            raise ValueError(f"pretraining_layers must be at least 1, or None; got {layers}.")
        z, _ = lax.scan(lambda z, _: (problem.evaluate(z), None), problem.z0, length=layers)
        return z, z, None
    z, solution = solve(
        problem, step_budget=forward.step_budget, backward_stats=forward.backward_stats
    )
    solved = problem.unravel(solution.z)
    return (z if train else solved), solved, solution


def regularise(problem: FixedPointProblem, z, forward: ForwardOptions, keys) -> jax.Array:
    """The Jacobian loss at `z`, or zero if it is not asked for.

    Args:
        problem: of one forward pass.
        z: state.
        forward: settings of the pass.
        keys: returns `[B]` random keys, one per sample; called only if the loss may be asked for.
    """
    if forward.with_jacobian is False:
        return jnp.float32(0)
    return optional_jacobian_loss(forward.with_jacobian, problem, z=z, key=keys())


def keep_last(x: jax.Array, length: int) -> jax.Array:
    """The last `length` positions of `[B, K, C]`, after zeros if there are fewer."""
    missing = length - x.shape[1]
    if missing > 0:
        return jnp.pad(x, ((0, 0), (missing, 0), (0, 0)))
    return x[:, -missing:]
