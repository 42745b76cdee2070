"""Spectral radius of the cell's Jacobian at the equilibria of a batch."""

import jax

from mdeq_jax.implicit import spectral_radius
from mdeq_jax.models import CellInput, apply_cell
from mdeq_jax.tasks import Task
from mdeq_jax.tree import ravel_batch

SPECTRAL_STEPS = 50  # products with the Jacobian
SPECTRAL_IMAGES = 64


def make_spectral_radius(model, task: Task, seed: int):
    """Returns `(variables, batch) -> {"growth", "residual", "mask"}`, each `[B]`."""

    def radius(variables, batch):
        images, mask = (batch[name][:SPECTRAL_IMAGES] for name in ("image", "mask"))
        injection = model.apply(variables, task.prepare(images), method="inject")
        weights = model.apply(variables, method="cell_weights")
        spec = model.cell.spec

        def cell(weights, z, x):
            return apply_cell(spec, weights, z, x)

        start, x = model.zero_state(injection), CellInput(injection)
        _, solution = model.solve(cell, weights, x, start)
        z = ravel_batch(start)[1](solution.z)
        result = spectral_radius(
            cell, weights, x, z, key=jax.random.key(seed), num_steps=SPECTRAL_STEPS
        )
        return {"growth": result.growth, "residual": result.residual, "mask": mask}

    return radius
