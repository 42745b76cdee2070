"""Settings that cannot work together, refused before anything is compiled."""

from mdeq_jax.training import devices

TASK_OF_MODEL = {"mdeq_classifier": "classification", "mdeq_segmenter": "segmentation"}


def check_data(config, dataset) -> None:
    """Refuses a network that does not fit the data.

    Raises:
        ValueError: another task, or another number of classes.
    """
    task = TASK_OF_MODEL[config.model.name]
    if dataset.task != task:
        raise ValueError(
            f"model.name={config.model.name!r} is for {task}, but {dataset.name} is a data set for "
            f"{dataset.task}: choose another data.name or another model.name."
        )
    if config.model.num_classes != dataset.num_classes:
        raise ValueError(
            f"model.num_classes={config.model.num_classes}, but {dataset.name} has "
            f"{dataset.num_classes} classes: set model.num_classes={dataset.num_classes}."
        )


def check_training(config) -> None:
    """Refuses training settings that cannot work, or would have no effect.

    Raises:
        ValueError: as said.
    """
    train, jacobian = config.train, config.jacobian
    devices.check_batch_size(train.batch_size, "train.batch_size")
    if train.epochs <= 0:
        raise ValueError(f"train.epochs must be above 0; got {train.epochs}.")
    for field, value, least in (
        ("train.pretrain_steps", train.pretrain_steps, 0),
        ("train.random_forward_delta", train.random_forward_delta, 0),
        ("log.every_steps", config.log.every_steps, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("jacobian.increment_every", jacobian.increment_every, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{field} must be at least {least}; got {value}.")
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
