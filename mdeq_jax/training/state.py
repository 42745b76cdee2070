"""What a training run carries from step to step, and the optimiser that moves it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mdeq_jax.training.schedules import learning_rate

OPTIMIZERS = ("adam", "sgd")


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: int32, optimiser steps done.
    params: parameters of the network.
    batch_stats: running statistics of its batch norms.
    opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        """The Flax variables that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def build_optimizer(train, num_steps: int) -> optax.GradientTransformation:
    """Adam or SGD whose updates are those of `torch.optim`: weight decay is added to the gradient.

    Args:
        train: `config.train`.
        num_steps: steps of the whole training, for the schedule.

    Raises:
        ValueError: unknown optimiser, or a bad schedule.
    """
    if train.optimizer not in OPTIMIZERS:
        raise ValueError(f"train.optimizer must be one of {OPTIMIZERS}; got {train.optimizer!r}.")
    # Always the same parts, so that a run may go on with another clipping or decay.
    clip = (
        optax.identity() if train.grad_clip is None else optax.clip_by_global_norm(train.grad_clip)
    )
    if train.optimizer == "adam":
        direction = optax.scale_by_adam()
    else:
        direction = optax.trace(decay=train.momentum, nesterov=train.nesterov)
    return optax.chain(
        clip,
        optax.add_decayed_weights(train.weight_decay),
        direction,
        optax.scale_by_learning_rate(learning_rate(train, num_steps)),
    )


def init_state(model, optimizer, seed: int, image_size: tuple[int, int]) -> TrainState:
    """A fresh state; the same seed gives the same on every host."""
    images = jnp.zeros((1, *image_size, 3))
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )
