"""What depends on the step: learning rate, weight of the Jacobian loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "constant")


def learning_rate(train, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of each step, linear warm-up first.

    "cosine" falls from `learning_rate` to `end_learning_rate` at `num_steps`, a step at a time, as
    `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Args:
        train: `config.train`.
        num_steps: steps of the whole training.

    Raises:
        ValueError: unknown schedule, or a warm-up longer than the training.
    """
    if train.schedule not in SCHEDULES:
        raise ValueError(f"train.schedule must be one of {SCHEDULES}; got {train.schedule!r}.")
    if train.learning_rate <= 0 or train.end_learning_rate < 0:
        raise ValueError(
            "train.learning_rate must be positive and train.end_learning_rate at least 0; "
            f"got {train.learning_rate} and {train.end_learning_rate}."
        )
    if not 0 <= train.warmup_steps < num_steps:
        raise ValueError(
            f"train.warmup_steps must be at least 0 and below the {num_steps} steps of the "
            f"training; got {train.warmup_steps}."
        )
    peak, end = train.learning_rate, train.end_learning_rate
    if train.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        main = optax.cosine_decay_schedule(peak, num_steps - train.warmup_steps, alpha=end / peak)
    if not train.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, peak, train.warmup_steps)
    return optax.join_schedules([warmup, main], [train.warmup_steps])


def jacobian_weight(config, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
    """Weight of the Jacobian loss on a step that applies it.

    w(t) = weight + 0.1 floor((t - pretrain_steps) / increment_every) in the equilibrium phase,
    `pretrain_weight` before it, 0 from `stop_epoch` on.

    Args:
        config: the whole config.
        steps_per_epoch: steps of an epoch, for `stop_epoch`.
    """
    settings, pretrain_steps = config.jacobian, config.train.pretrain_steps

    def weight(step):
        value = jnp.float32(settings.weight)
        if settings.increment_every is not None:
            value += 0.1 * ((step - pretrain_steps) // settings.increment_every)
        if settings.stop_epoch is not None:
            value = jnp.where(step < settings.stop_epoch * steps_per_epoch, value, 0.0)
        return jnp.where(step < pretrain_steps, settings.pretrain_weight, value)

    return weight
