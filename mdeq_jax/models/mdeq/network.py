"""A multiscale deep equilibrium model: stem, equilibrium of one cell, head."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import BackwardStats, equilibrium, jacobian_loss
from mdeq_jax.layers import sample_keys
from mdeq_jax.models.mdeq.cell import CellInput, MDEQCell, Scales, apply_cell, make_masks
from mdeq_jax.models.mdeq.heads import Stem
from mdeq_jax.solvers import Solution
from mdeq_jax.tree import ravel_batch


class MDEQOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        logits: `[B, num_classes]`, or `[B, H_0, W_0, num_classes]` for segmentation.
        z_star: state that the head read, one `[B, H_i, W_i, C_i]` a resolution: one evaluation of
            the cell past the solver's `solution.z` (`phantom`: its last application).
        solution: report of the forward solver; None with `plain_layers`.
        jacobian_loss: scalar; zero unless asked for.
    """

    logits: jax.Array
    z_star: Scales
    solution: Solution | None
    jacobian_loss: jax.Array


class MDEQ(nn.Module):
    """Multiscale deep equilibrium model (Bai, Koltun, Kolter 2020, 2006.08656).

    Attributes:
        stem: image to input injection.
        cell: parameters of the equilibrium cell.
        head: equilibrium to logits.
        f_solver: forward solver, settings bound.
        gradient: one of `mdeq_jax.implicit.GRADIENTS`, settings bound.
        downsample_times: how often the stem halves the image.

    With `config.train.sync_batch_norm` training mode works only inside `pmap`, axis "batch".
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
        z0: Scales | None = None,
        step_budget: int | jax.Array | None = None,
        stats: BackwardStats | None = None,
        with_jacobian: bool | jax.Array = False,
        first_sample: int | jax.Array = 0,
    ) -> MDEQOutput:
        """Runs the network on `[B, H, W, 3]` normalised images.

        Args:
            images: float32; H and W divisible by 2^(downsample_times + number of scales - 1).
            train: batch statistics and dropout (random key "dropout") instead of running ones.
            plain_layers: apply the cell this often in the place of the solver (pretraining).
            z0: start of the solver; zero if None.
            step_budget: most solver steps; may be traced.
            stats: see `mdeq_jax.implicit.BackwardStats`.
            with_jacobian: whether to compute the Jacobian loss (random key "jacobian"); may be
                traced, then it costs nothing where it is false.
            first_sample: place of this device's first sample in the global batch. Random numbers
                are drawn by place, so that they do not depend on how the batch is split.

        Raises:
            ValueError: an image size that the scales do not divide, or `plain_layers` below 1.
        """
        check_image_size(images.shape, self.downsample_times, self.cell.spec.num_scales)
        if plain_layers is not None and plain_layers < 1:
            raise ValueError(f"plain_layers must be at least 1, or None; got {plain_layers}.")
        if self.is_initializing():
            plain_layers = 1  # every parameter is made outside the equilibrium

        injection = self.inject(images, train=train)
        weights = self.cell()
        start = self.zero_state(injection) if z0 is None else z0
        masks = None
        if train and self.cell.spec.dropout > 0:
            keys = sample_keys(self.make_rng("dropout"), first_sample, images.shape[0])
            masks = make_masks(keys, self.cell.spec, start)
        x = CellInput(injection, masks)
        f = partial(apply_cell, self.cell.spec)

        if plain_layers is None:
            z, solution = self.solve(f, weights, x, start, step_budget=step_budget, stats=stats)
            solved = ravel_batch(start)[1](solution.z)
        else:
            solution = None
            z, _ = lax.scan(lambda z, _: (f(weights, z, x), None), start, length=plain_layers)
            solved = z
        jacobian = jnp.float32(0)
        if with_jacobian is not False:
            keys = sample_keys(self.make_rng("jacobian"), first_sample, images.shape[0])
            jacobian = lax.cond(
                with_jacobian,
                lambda: jacobian_loss(f, weights, x, solved, key=keys).astype(jnp.float32),
                lambda: jnp.float32(0),
            )
        return MDEQOutput(self.read_out(z, train=train), z, solution, jacobian)

    @nn.nowrap
    def solve(self, f, weights, x, z0, *, f_solver=None, step_budget=None, stats=None):
        """`equilibrium` of the cell with this model's solver (or another) and gradient."""
        return equilibrium(
            f,
            weights,
            x,
            z0,
            f_solver=f_solver or self.f_solver,
            gradient=self.gradient,
            step_budget=step_budget,
            stats=stats,
        )

    def read_out(self, z: Scales, *, train: bool = False) -> jax.Array:
        """The logits of a state."""
        return self.head(z, train=train)

    def inject(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The input injection `[B, H_0, W_0, channels[0]]` of the highest resolution."""
        return self.stem(images, train=train)

    def cell_weights(self) -> dict:
        """The weights that `apply_cell` takes."""
        return self.cell()

    @nn.nowrap
    def zero_state(self, injection: jax.Array) -> Scales:
        """A state of zeros, in float32 or the injection's type if that is wider."""
        batch, height, width, _ = injection.shape
        dtype = jnp.promote_types(injection.dtype, jnp.float32)
        return tuple(
            jnp.zeros((batch, height >> i, width >> i, channels), dtype)
            for i, channels in enumerate(self.cell.spec.channels)
        )


def check_image_size(shape, downsample_times: int, num_scales: int) -> None:
    """Refuses images `[B, H, W, 3]` that cannot be halved as often as the network does.

    Raises:
        ValueError: as said, or `shape` does not have four entries of which the last is 3.
    """
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"images must have shape [batch, height, width, 3]; got {tuple(shape)}.")
    factor = 2 ** (downsample_times + num_scales - 1)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"Image height and width must be multiples of {factor} (2^{downsample_times} in the "
            f"stem, 2^{num_scales - 1} between {num_scales} scales); got {shape[1]}x{shape[2]}. "
            "Resize or pad the images, or use fewer scales or a smaller downsample_times."
        )
