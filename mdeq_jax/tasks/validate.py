"""Settings of a task that cannot work, or do not fit the data, refused before compilation."""

TASK_OF_MODEL = {"mdeq_classifier": "classification", "mdeq_segmenter": "segmentation"}
# Fields that only segmentation has, and their value where they are not used.
_SEGMENTATION_FIELDS = (
    ("train", "class_weights", None),
    ("train", "ohem_threshold", None),
    ("train", "ohem_min_kept", None),
    ("eval", "scales", (1.0,)),
    ("eval", "flip", False),
    ("eval", "window", None),
    ("eval", "stride", None),
    ("eval", "warm_start", True),
)


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


def check_settings(config) -> None:
    """Refuses settings of the loss that cannot work, and those that have no effect on the task.

    Raises:
        ValueError: as said.
    """
    train = config.train
    if config.model.name != "mdeq_segmenter":
        for where, field, unset in _SEGMENTATION_FIELDS:
            if config[where][field] != unset:
                raise ValueError(
                    f"{where}.{field}={config[where][field]!r} is for segmentation and has no "
                    f"effect on model.name={config.model.name!r}: leave it at {unset}."
                )
        return
    threshold, kept = train.ohem_threshold, train.ohem_min_kept
    if train.label_smoothing:
        raise ValueError(
            f"train.label_smoothing={train.label_smoothing} is for classification; the loss of "
            "pixels has none: set it to 0."
        )
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"train.ohem_threshold={threshold} must be a probability in (0, 1].")
    if kept is not None and (threshold is None or kept < 0):
        raise ValueError(
            f"train.ohem_min_kept={kept} must be at least 0, and needs train.ohem_threshold "
            f"(it is {threshold})."
        )
