"""A multiscale deep equilibrium model: stem, equilibrium of one cell, head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import (
    BackwardStats,
    FixedPointProblem,
    equilibrium,
    optional_jacobian_loss,
)
from mdeq_jax.layers import sample_keys
from mdeq_jax.models.mdeq.cell import CellInput, MDEQCell, Scales, apply_cell, make_masks
from mdeq_jax.models.mdeq.heads import Stem
from mdeq_jax.models.mdeq.validate import check_image_size
from mdeq_jax.models.output import ForwardOptions, ModelOutput
from mdeq_jax.solvers import Solution


class MDEQ(nn.Module):
    """Multiscale deep equilibrium model (Bai, Koltun, Kolter 2020, 2006.08656).

    Attributes:
        stem: module from image to input injection.
        cell: parameters of the equilibrium cell.
        head: module from equilibrium to logits.
        f_solver: forward solver, settings bound.
        gradient: one of `mdeq_jax.implicit.GRADIENTS`, settings bound.
        downsample_times: number of times that the stem halves the image.

    With `config.train.sync_batch_norm` training mode works only under the batch axis of
    `mdeq_jax.parallel`.
    """

    stem: Stem
    cell: MDEQCell
    head: nn.Module
    f_solver: Callable[..., Solution]
    gradient: Callable[..., Scales]
    downsample_times: int

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        plain_layers: int | None = None,
        step_budget: int | jax.Array | None = None,
        z0: Scales | None = None,
        forward: ForwardOptions | None = None,
    ) -> ModelOutput:
        """Runs the network on `[B, H, W, 3]` normalised images.

        Args:
            images: float32; H and W divisible by 2^(downsample_times + number of scales - 1).
            train: use batch statistics and dropout (random key "dropout") instead of running ones.
            plain_layers: `forward.pretraining_layers`, set by hand.
            step_budget: `forward.step_budget`, set by hand.
            z0: start of the solver; zero if None.
            forward: see `ForwardOptions`; None: its defaults.

        Raises:
            ValueError: an image size that the scales do not divide, or `plain_layers` below 1.
        """
        forward = ForwardOptions() if forward is None else forward
        if plain_layers is not None:
            forward = forward._replace(pretraining_layers=plain_layers)
        if step_budget is not None:
            forward = forward._replace(step_budget=step_budget)
        layers = forward.pretraining_layers
        if layers is not None and layers < 1:
            raise ValueError(f"plain_layers must be at least 1, or None; got {layers}.")
        if self.is_initializing():
            layers = 1  # so that every parameter is created outside the solver

        problem = self.problem(images, train=train, z0=z0, first_sample=forward.first_sample)
        if layers is None:
            z, solution = self.solve(
                problem, step_budget=forward.step_budget, backward_stats=forward.backward_stats
            )
            solved = problem.unravel(solution.z)
        else:
            solution = None
            z, _ = lax.scan(lambda z, _: (problem.evaluate(z), None), problem.z0, length=layers)
            solved = z
        jacobian = self._jacobian_loss(problem, solved, forward)
        return ModelOutput(self.read_out(z, train=train), solution, z, jacobian)

    def problem(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        z0: Scales | None = None,
        first_sample: int | jax.Array = 0,
    ) -> FixedPointProblem:
        """The problem of one forward pass; arguments and errors as for the pass."""
        check_image_size(images.shape, self.downsample_times, self.cell.spec.num_scales)
        injection = self.stem(images, train=train)
        weights = self.cell()
        start = self._zero_state(injection) if z0 is None else z0
        masks = None
        if train and self.cell.spec.dropout > 0:
            keys = sample_keys(self.make_rng("dropout"), first_sample, images.shape[0])
            masks = make_masks(keys, self.cell.spec, start)
        f = partial(apply_cell, self.cell.spec)
        return FixedPointProblem(f, weights, CellInput(injection, masks), start)

    def _jacobian_loss(self, problem, z, forward: ForwardOptions) -> jax.Array:
        """The Jacobian loss at `z`, or zero where it is not asked for."""
        if forward.with_jacobian is False:
            return jnp.float32(0)
        batch = z[0].shape[0]
        keys = sample_keys(self.make_rng("jacobian"), forward.first_sample, batch)
        return optional_jacobian_loss(forward.with_jacobian, problem, z=z, key=keys)

    @nn.nowrap
    def fixed_point_problem(self, variables: dict, images: jax.Array) -> FixedPointProblem:
        """The problem that evaluation mode solves for `[B, H, W, 3]` normalised images."""
        problem: Any = self.apply(variables, images, method="problem")
        return problem

    @nn.nowrap
    def solve(
        self,
        problem: FixedPointProblem,
        *,
        f_solver: Callable[..., Solution] | None = None,
        step_budget: int | jax.Array | None = None,
        backward_stats: BackwardStats | None = None,
    ) -> tuple[Scales, Solution]:
        """`equilibrium` of a problem with this model's gradient and solver (or another)."""
        return equilibrium(
            *problem,
            f_solver=f_solver or self.f_solver,
            gradient=self.gradient,
            step_budget=step_budget,
            backward_stats=backward_stats,
        )

    def read_out(self, z: Scales, *, train: bool = False) -> jax.Array:
        """The logits of a state."""
        return self.head(z, train=train)

    @nn.nowrap
    def _zero_state(self, injection: jax.Array) -> Scales:
        """A state of zeros, in float32 or the injection's type if that is wider."""
        batch, height, width, _ = injection.shape
        dtype = jnp.promote_types(injection.dtype, jnp.float32)
        return tuple(
            jnp.zeros((batch, height >> i, width >> i, channels), dtype)
            for i, channels in enumerate(self.cell.spec.channels)
        )
