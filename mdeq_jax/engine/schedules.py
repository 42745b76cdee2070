"""Functions of the step: learning rate, weight of the Jacobian loss."""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

SCHEDULES = ("cosine", "step", "polynomial", "constant")


# Fields of `config.train` that belong to one schedule only.
_SETTINGS = {"step": ("decay_epochs", "decay_factor"), "polynomial": ("decay_power",)}


def learning_rate(train: ConfigDict, num_steps: int) -> optax.Schedule:
    """Learning rate of each step, linear warm-up first.

    The warm-up rises from `warmup_learning_rate` (0 if None). All schedules but "constant" count
    from its end, or from step 0 with `schedule_from_start`:

    - "cosine" falls from `learning_rate` to `end_learning_rate` at `num_steps`, a step at a time,
      as `torch.optim.lr_scheduler.CosineAnnealingLR` does.
    - "polynomial" falls as (1 - t / T)^`decay_power` (0.9 if None) between the same rates.
    - "step" multiplies by `decay_factor` (0.1 if None) at each of `decay_epochs`.

    With `first_step_at_full_rate`, step 0 takes `learning_rate`, as in the released language
    models, whose rate is set after each step.

    Args:
        train: `config.train`.
        num_steps: steps of the whole training, those of `train.epochs` epochs.

    Raises:
        ValueError: an unknown schedule, a setting that the schedule does not have or that it lacks,
            or a warm-up longer than the training.
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
    own = ("warmup_learning_rate", "schedule_from_start", "first_step_at_full_rate")
    if not train.warmup_steps and (set_ones := [name for name in own if train[name]]):
        raise ValueError(
            f"train.{' and train.'.join(set_ones)} {'has' if len(set_ones) == 1 else 'have'} no "
            "effect with train.warmup_steps=0: unset them, or set the steps."
        )
    _check_settings(train)
    peak, end = train.learning_rate, train.end_learning_rate
    first = 0 if train.schedule_from_start else train.warmup_steps  # step 0 of the schedule
    steps = num_steps - first
    if train.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif train.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, steps, alpha=end / peak)
    elif train.schedule == "polynomial":
        power = 0.9 if train.decay_power is None else train.decay_power
        main = optax.polynomial_schedule(peak, end, power, steps)
    else:
        factor = 0.1 if train.decay_factor is None else train.decay_factor
        per_epoch = num_steps / train.epochs
        at = Counter(round(epoch * per_epoch) - first for epoch in train.decay_epochs)
        factors = {step: factor**count for step, count in at.items()}
        main = optax.piecewise_constant_schedule(peak, factors)
    if not train.warmup_steps:
        return main
    warmup = optax.linear_schedule(train.warmup_learning_rate or 0.0, peak, train.warmup_steps)
    if first and not train.first_step_at_full_rate:
        return optax.join_schedules([warmup, main], [train.warmup_steps])

    def rate(step):
        rising = step < train.warmup_steps
        if train.first_step_at_full_rate:
            return jnp.where(step == 0, peak, jnp.where(rising, warmup(step), main(step - first)))
        return jnp.where(rising, warmup(step), main(step))

    return rate


def _check_settings(train: ConfigDict) -> None:
    """Refuses settings of another schedule, and values that a schedule cannot take."""
    for schedule, fields in _SETTINGS.items():
        for field in fields:
            if train[field] is not None and train.schedule != schedule:
                raise ValueError(
                    f"train.{field}={train[field]!r} has no effect on train.schedule="
                    f"{train.schedule!r}, only on {schedule!r}: unset it, or change the schedule."
                )
    if train.decay_power is not None and train.decay_power <= 0:
        raise ValueError(f"train.decay_power must be positive; got {train.decay_power}.")
    if train.decay_factor is not None and not 0 < train.decay_factor < 1:
        raise ValueError(f"train.decay_factor must be in (0, 1); got {train.decay_factor}.")
    if train.schedule == "step":
        epochs = train.decay_epochs or ()
        if not epochs or list(epochs) != sorted(set(epochs)) or not 0 < epochs[-1] < train.epochs:
            raise ValueError(
                "train.schedule='step' needs train.decay_epochs, the epochs at which the rate "
                f"falls, rising and within the {train.epochs} of the training; got {epochs}."
            )


def jacobian_weight(config: ConfigDict, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
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
