"""Settings that cannot work together, refused before anything is compiled."""

from ml_collections import ConfigDict

from mdeq_jax.models import family_of
from mdeq_jax.runtime import devices


def check_training(config: ConfigDict) -> None:
    """Refuses training settings that cannot work, or would have no effect.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    train, jacobian = config.train, config.jacobian
    if train.accumulate_steps < 1:
        raise ValueError(
            f"train.accumulate_steps must be at least 1; got {train.accumulate_steps}."
        )
    devices.check_batch_size(train.batch_size, "train.batch_size", train.accumulate_steps)
    if train.epochs <= 0:
        raise ValueError(f"train.epochs must be above 0; got {train.epochs}.")
    for field, value, least in (
        ("train.pretrain_steps", train.pretrain_steps, 0),
        ("train.random_forward_delta", train.random_forward_delta, 0),
        ("train.random_forward_above", train.random_forward_above, 0),
        ("train.max_skipped_updates", train.max_skipped_updates, 1),
        ("log.every_steps", config.log.every_steps, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("jacobian.increment_every", jacobian.increment_every, 1),
        ("seed", config.seed, 0),
        ("solver.forward.max_steps", config.solver.forward.max_steps, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{field} must be at least {least}; got {value}.")
    for field, value in (
        ("eval.every_epochs", config.eval.every_epochs),
        ("eval.spectral_radius_every_epochs", config.eval.spectral_radius_every_epochs),
        ("checkpoint.every_epochs", config.checkpoint.every_epochs),
    ):
        if value is not None and value <= 0:
            raise ValueError(f"{field} must be above 0; got {value}.")
    if not 0 <= train.momentum < 1:
        raise ValueError(f"train.momentum must be in [0, 1); got {train.momentum}.")
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        raise ValueError(f"train.ema_decay must be in (0, 1), or None; got {train.ema_decay}.")
    if train.grad_clip is not None and train.grad_clip <= 0:
        raise ValueError(f"train.grad_clip must be positive, or None; got {train.grad_clip}.")
    if train.pretrain_steps > 0 and train.pretrain_layers < 1:
        raise ValueError(
            f"train.pretrain_steps={train.pretrain_steps} needs train.pretrain_layers of at least "
            f"1; got {train.pretrain_layers}. Set pretrain_steps=0 for no pretraining phase."
        )
    if not 0 <= jacobian.frequency <= 1:
        raise ValueError(f"jacobian.frequency must be in [0, 1]; got {jacobian.frequency}.")
    if jacobian.frequency == 0 and (jacobian.weight or jacobian.pretrain_weight):
        raise ValueError(
            f"jacobian.weight={jacobian.weight} and pretrain_weight={jacobian.pretrain_weight} "
            "have no effect with jacobian.frequency=0: set the share of steps that apply the loss."
        )
    if jacobian.frequency > 0 and train.random_forward_delta >= config.solver.forward.max_steps:
        raise ValueError(
            f"train.random_forward_delta={train.random_forward_delta} must be below "
            f"solver.forward.max_steps={config.solver.forward.max_steps}, or no step remains."
        )


def check_evaluation(config: ConfigDict) -> None:
    """Refuses evaluation settings that the model cannot have.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    size, epochs = config.eval.batch_size, config.eval.spectral_radius_every_epochs
    if size is not None and size < 1:
        raise ValueError(f"eval.batch_size must be at least 1, or None; got {size}.")
    if epochs is not None and not family_of(config).has_equilibrium:
        raise ValueError(
            f"eval.spectral_radius_every_epochs={epochs} has no effect on model.name="
            f"{config.model.name!r}, which has no equilibrium: unset it."
        )
