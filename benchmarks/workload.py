"""The work that is timed: a config with a forced number of solver steps, and random images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.layers import sample_keys
from mdeq_jax.models import CellInput, CellSpec, apply_cell, build_model
from mdeq_jax.models.mdeq.cell import Scales, make_masks


def forced(config, *, precision=None, forward_steps=None, backward_steps=None):
    """`config` whose solvers take all their steps, whatever the network.

    The tolerance is zero, so that two implementations (or two commits) do the same work. Adjoint
    solutions of "ift" that were not found are kept: their replacement takes four more products,
    for some random networks and not for others, and the original has none.

    Args:
        config: a config of `configs/`.
        precision: "float32" or "bfloat16"; None: as it is.
        forward_steps: forward solver steps; None: `max_steps` of the config.
        backward_steps: backward solver steps; None: `max_steps` of the config.
    """
    config = config.copy_and_resolve_references()
    forward, backward = config.solver.forward, config.solver.backward
    with config.unlocked():
        config.precision = precision or config.precision
        config.train.random_forward_delta = 0
        for solver, steps in ((forward, forward_steps), (backward, backward_steps)):
            solver.tol = 0.0
            solver.max_steps = steps or solver.max_steps
        if config.gradient.name == "ift":
            config.gradient.unconverged = "keep"
    return config


def forced_by_flags(values):
    """`forced`, by the flags that `report.define_flags` defines for both solves."""
    return forced(
        values.config,
        precision=values.precision,
        forward_steps=values.forward_steps,
        backward_steps=values.backward_steps,
    )


def full_nfe(way: str, steps: int) -> int:
    """Evaluations of the cell in a solve of `steps` steps, or products with its Jacobian.

    The backward solve starts from zero, where the product is known.
    """
    return steps + 1 if way == "forward" else steps


def random_batch(config, batch_size: int) -> dict:
    """Random images and labels of the config's shapes, on the default device.

    Returns:
        "image" `[B, H, W, 3]` float32; "label" int32, `[B]`, or `[B, H, W]` for segmentation.
    """
    images, labels = jax.random.split(jax.random.key(0))
    shape = (batch_size, *config.data.image_size)
    label_shape = shape[:1] if config.model.name == "mdeq_classifier" else shape
    return {
        "image": jax.random.normal(images, (*shape, 3)),
        "label": jax.random.randint(labels, label_shape, 0, config.model.num_classes, jnp.int32),
    }


def random_network(config):
    """The model of a config and its variables at initialisation."""
    model = build_model(config)
    images = jnp.zeros((1, *config.data.image_size, 3))
    return model, jax.jit(model.init)(jax.random.key(config.seed), images)


class CellProblem(NamedTuple):
    """A cell and what it is applied to, as in a training step.

    Attributes:
        spec: of the cell.
        weights: as `MDEQCell` gives them.
        z: state, a few applications from zero.
        x: injection and dropout masks.
    """

    spec: CellSpec
    weights: dict
    z: Scales
    x: CellInput

    def f(self, weights: dict, z: Scales, x: CellInput) -> Scales:
        """The cell."""
        return apply_cell(self.spec, weights, z, x)


def cell_problem(config, batch_size: int) -> CellProblem:
    """The cell of a random network, on random images, all on the default device."""
    model, variables = random_network(config)
    spec, images = model.cell.spec, random_batch(config, batch_size)["image"]

    @jax.jit
    def prepare(variables, images):
        problem = model.fixed_point_problem(variables, images)
        if spec.dropout > 0:
            keys = sample_keys(jax.random.key(0), 0, batch_size)
            masks = make_masks(keys, spec, problem.z0)
            problem = problem._replace(x=problem.x._replace(masks=masks))
        z, _ = lax.scan(lambda z, _: (problem.evaluate(z), None), problem.z0, length=3)
        return problem.params, z, problem.x

    return CellProblem(spec, *prepare(variables, images))
