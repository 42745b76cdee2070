"""The task of `MDEQ` segmenters: loss and figures over pixels, inference on whole images."""

from functools import partial

import jax
import jax.numpy as jnp

from mdeq_jax.data import CLASS_TABLES, IGNORE_LABEL
from mdeq_jax.data.sets.cityscapes import CLASS_WEIGHTS
from mdeq_jax.data.vision.label_classes import evaluated
from mdeq_jax.layers import resize_bilinear
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks.segmentation.confusion import confusion_matrix, scores
from mdeq_jax.tasks.segmentation.inference import (
    InferenceSettings,
    image_logits,
    network_input,
    segment,
)
from mdeq_jax.tasks.segmentation.losses import (
    global_mean,
    hard_pixels,
    pixel_cross_entropy,
    pixel_weights,
)
from mdeq_jax.tasks.task import Task
from mdeq_jax.tasks.validate import check_settings

_NAMED_WEIGHTS = {"cityscapes": CLASS_WEIGHTS}


def segmentation(config) -> Task:
    """Pixel cross-entropy; mIoU and accuracies of one confusion matrix.

    The loss is the weighted mean over the pixels that count; with `train.ohem_threshold`, the mean
    of the weighted losses over the hard ones (`hard_pixels`). Both are over the batch of all
    devices; with `train.accumulate_steps` over each of its parts, whose losses are averaged.

    Raises:
        ValueError: a setting that cannot work, or has no effect here.
    """
    train = config.train
    check_settings(config)
    weights = class_weights(train, config.model.num_classes)
    settings = InferenceSettings.from_config(config)
    names = class_names(config)

    def loss(logits, batch):
        labels = batch["label"]
        losses = pixel_cross_entropy(_at_labels(logits, labels), labels, IGNORE_LABEL)
        pixels = pixel_weights(labels, IGNORE_LABEL, weights, losses.dtype)
        if train.ohem_threshold is None:
            return global_mean(pixels * losses, pixels, BATCH_AXIS)
        hard = hard_pixels(
            losses,
            labels != IGNORE_LABEL,
            threshold=train.ohem_threshold,
            min_kept=train.ohem_min_kept or 0,
            axis_name=BATCH_AXIS,
        ).astype(losses.dtype)
        return global_mean(hard * pixels * losses, hard, BATCH_AXIS)

    def figures(logits, batch):
        labels, mask = batch["label"], batch["mask"]
        logits = _at_labels(logits, labels)
        losses = pixel_cross_entropy(logits, labels, IGNORE_LABEL)
        counted = labels != IGNORE_LABEL
        pixels = jnp.maximum(jnp.sum(counted, axis=(1, 2)), 1)
        return {
            "loss": jnp.sum(mask * jnp.sum(losses, axis=(1, 2)) / pixels),
            "confusion": confusion_matrix(
                jnp.argmax(logits, axis=-1),
                labels,
                counted & (mask[:, None, None] > 0),
                config.model.num_classes,
            ),
        }

    def summarize(sums):
        return {
            "loss": float(sums["loss"] / sums["count"]),
            **scores(sums["confusion"], names),
        }

    return Task(
        loss,
        figures,
        summarize,
        "miou",
        infer=partial(_infer, settings),
        prepare=lambda images: network_input(images, settings),
        restore=lambda logits, images: image_logits(logits, images.shape[1:3], settings),
    )


def _infer(settings, model, variables, images, step_budget=None):
    return segment(model, variables, images, settings, step_budget)


def _at_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits `[B, h, w, C]` at the resolution of labels `[B, H, W]`."""
    return resize_bilinear(logits, labels.shape[1:3])


def class_names(config) -> tuple[str, ...]:
    """Names of the classes of `config.data.name`, or their numbers where it has no class table."""
    table = CLASS_TABLES.get(config.data.name)
    if table is None:
        return tuple(str(i) for i in range(config.model.num_classes))
    return tuple(c.name for c in evaluated(table))


def class_weights(train, num_classes: int) -> tuple[float, ...] | None:
    """The weights that `train.class_weights` names or lists; None: every pixel counts the same.

    Raises:
        ValueError: an unknown name, another number of weights, or one that is not above 0.
    """
    given = train.class_weights
    if given is None or given == "none":
        return None
    if isinstance(given, str):
        if given not in _NAMED_WEIGHTS:
            raise ValueError(
                f"train.class_weights={given!r} must be one of {sorted(_NAMED_WEIGHTS)}, one "
                "number a class, or None."
            )
        given = _NAMED_WEIGHTS[given]
    weights = tuple(given) if isinstance(given, list | tuple) else (given,)
    numbers = all(isinstance(weight, int | float) for weight in weights)
    if len(weights) != num_classes or not numbers or not all(w > 0 for w in weights):
        raise ValueError(
            f"train.class_weights={train.class_weights!r} stands for {weights}, but must be one "
            f"number above 0 for each of the {num_classes} classes (model.num_classes)."
        )
    return tuple(float(weight) for weight in weights)
