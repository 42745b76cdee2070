"""Spectral radius of the cell's Jacobian at the equilibria of a batch."""

from collections.abc import Callable

import jax

from mdeq_jax.implicit import spectral_radius
from mdeq_jax.models import EquilibriumModel
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree

SPECTRAL_STEPS = 50  # products with the Jacobian
SPECTRAL_EXAMPLES = 64
BATCHES_BEFORE = 4  # whose carry the batch is given, if the task has one


def make_spectral_radius(model: EquilibriumModel, task: Task, seed: int) -> Callable:
    """Returns `(variables, carry, batch) -> {"growth", "residual", "mask"}`, each `[B]`.

    `carry` is what the batches before have left, see `Task.initial_carry`.
    """

    def radius(variables: dict, carry: PyTree, batch: dict) -> dict[str, jax.Array]:
        batch = task.with_carry(batch, carry)
        batch = jax.tree.map(lambda x: x[:SPECTRAL_EXAMPLES], batch)
        inputs = task.to_network_input(task.inputs(batch))
        problem = model.fixed_point_problem(variables, inputs)
        _, solution = model.solve(problem)
        result = spectral_radius(
            problem,
            z=problem.unravel(solution.z),
            key=jax.random.key(seed),
            num_steps=SPECTRAL_STEPS,
        )
        return {"growth": result.growth, "residual": result.residual, "mask": batch["mask"]}

    return radius
