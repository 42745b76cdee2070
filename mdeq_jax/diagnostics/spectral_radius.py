"""Spectral radius of the cell's Jacobian at the equilibria of a batch."""

import jax

from mdeq_jax.implicit import spectral_radius
from mdeq_jax.tasks import Task

SPECTRAL_STEPS = 50  # products with the Jacobian
SPECTRAL_IMAGES = 64


def make_spectral_radius(model, task: Task, seed: int):
    """Returns `(variables, batch) -> {"growth", "residual", "mask"}`, each `[B]`."""

    def radius(variables, batch):
        images, mask = (batch[name][:SPECTRAL_IMAGES] for name in ("image", "mask"))
        problem = model.fixed_point_problem(variables, task.prepare(images))
        _, solution = model.solve(problem)
        result = spectral_radius(
            problem,
            z=problem.unravel(solution.z),
            key=jax.random.key(seed),
            num_steps=SPECTRAL_STEPS,
        )
        return {"growth": result.growth, "residual": result.residual, "mask": mask}

    return radius
