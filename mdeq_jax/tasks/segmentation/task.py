"""Semantic segmentation: losses and metrics over pixels, inference on whole images."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdeq_jax.data import IGNORE_LABEL, Dataset, read_class_table
from mdeq_jax.data.sets.cityscapes import CLASS_WEIGHTS
from mdeq_jax.data.vision.label_classes import evaluated
from mdeq_jax.layers import resize_bilinear
from mdeq_jax.models import ModelOutput
from mdeq_jax.parallel import global_mean
from mdeq_jax.tasks.image_task import ImageTask
from mdeq_jax.tasks.metric import percent
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.segmentation.confusion import confusion_matrix, scores
from mdeq_jax.tasks.segmentation.inference import (
    InferenceSettings,
    network_input,
    segment,
    size_of,
    to_image_size,
)
from mdeq_jax.tasks.segmentation.losses import (
    hard_pixels,
    pixel_cross_entropy,
    pixel_weights,
)
from mdeq_jax.tasks.segmentation.predict import describe_prediction, predict_folder, save_pictures
from mdeq_jax.tasks.segmentation.review import review_segmentation
from mdeq_jax.tasks.segmentation.segmenter import Segmenter
from mdeq_jax.viz.review import Review

_NAMED_WEIGHTS = {"cityscapes": CLASS_WEIGHTS}


class Segmentation(ImageTask):
    """Pixel cross-entropy; mIoU and accuracies from one confusion matrix.

    The loss is the weighted mean over the pixels that count. With `train.ohem_threshold` it is the
    mean of the weighted losses over the hard ones (`hard_pixels`). Both are over the batch of all
    devices; with `train.accumulate_steps` over each of its parts, whose losses are averaged.
    """

    name = "segmentation"
    metrics = (percent("miou", "mIoU"), percent("pixel_accuracy"))
    own_fields = {  # noqa: RUF012
        "train.class_weights": None,
        "train.ohem_threshold": None,
        "train.ohem_min_kept": None,
        "eval.scales": (1.0,),
        "eval.flip": False,
        "eval.window": None,
        "eval.stride": None,
        "eval.warm_start": True,
    }

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        _check_hard_pixels(config.train)
        self._num_classes = config.model.num_classes
        self._weights = class_weights(config.train, self._num_classes)
        self._settings = InferenceSettings.from_config(config)
        self._class_names = class_names(config)

    @property
    def single_pass(self) -> bool:
        """Whether images are taken whole, at one scale, and not mirrored."""
        return self._settings.single_pass

    def loss(self, outputs: ModelOutput, batch: dict) -> jax.Array:
        """This device's share of the mean over pixels; see `losses`."""
        labels, train = batch["label"], self._config.train
        logits = _at_labels(outputs.logits, labels)
        losses = pixel_cross_entropy(logits, labels, IGNORE_LABEL)
        pixels = pixel_weights(labels, IGNORE_LABEL, self._weights, losses.dtype)
        if train.ohem_threshold is None:
            return global_mean(pixels * losses, pixels)
        hard = hard_pixels(
            losses,
            labels != IGNORE_LABEL,
            threshold=train.ohem_threshold,
            min_kept=train.ohem_min_kept or 0,
        ).astype(losses.dtype)
        return global_mean(hard * pixels * losses, hard)

    def metric_sums(self, outputs: ModelOutput, batch: dict) -> dict[str, jax.Array]:
        """The sum of the images' mean losses, and the confusion matrix of the pixels."""
        labels, mask = batch["label"], batch["mask"]
        logits = _at_labels(outputs.logits, labels)
        losses = pixel_cross_entropy(logits, labels, IGNORE_LABEL)
        counted = labels != IGNORE_LABEL
        pixels = jnp.maximum(jnp.sum(counted, axis=(1, 2)), 1)
        return {
            "loss": jnp.sum(mask * jnp.sum(losses, axis=(1, 2)) / pixels),
            "confusion": confusion_matrix(
                jnp.argmax(logits, axis=-1),
                labels,
                counted & (mask[:, None, None] > 0),
                self._num_classes,
            ),
        }

    def finalize(self, sums: dict) -> dict[str, float]:
        """Mean loss, and `scores` of the confusion matrix."""
        return {
            "loss": float(sums["loss"] / sums["count"]),
            **scores(sums["confusion"], self._class_names),
        }

    def infer(
        self,
        model: nn.Module,
        variables: dict,
        inputs: jax.Array,
        step_budget: jax.Array | None = None,
    ) -> ModelOutput:
        """Segments whole images with the settings of `config.eval`; see `segment`."""
        return segment(model, variables, inputs, self._settings, step_budget)

    def to_network_input(self, inputs: jax.Array) -> jax.Array:
        """Images at the scale nearest to 1, padded to sides that the network can halve."""
        return network_input(inputs, self._settings)

    def to_target_size(self, outputs: ModelOutput, inputs: jax.Array) -> ModelOutput:
        """Outputs with the logits at the size of the images."""
        return to_image_size(outputs, size_of(inputs), self._settings)

    def review(self, trained: TrainedModel, dataset: Dataset, max_examples: int) -> Review:
        """The confusion matrix of the pixels, and the images with the largest mean loss."""
        return review_segmentation(self, trained, dataset, max_examples)

    def predict(self, trained: TrainedModel, source: str | Path, workdir: Path) -> str:
        """Segments a folder or a video as pictures in `workdir/predictions/`."""
        output = workdir / "predictions"
        summary = predict_folder(self, Segmenter(trained), source, output)
        return f"Wrote {output}: {describe_prediction(summary)}"

    def save_predictions(self, trained: TrainedModel, folder: str | Path) -> dict[str, float]:
        """Writes pictures of the evaluation split; see `save_pictures`."""
        return save_pictures(self, Segmenter(trained), folder)


def _at_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits `[B, h, w, C]` at the resolution of labels `[B, H, W]`."""
    return resize_bilinear(logits, size_of(labels))


def _check_hard_pixels(train: ConfigDict) -> None:
    threshold, kept = train.ohem_threshold, train.ohem_min_kept
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"train.ohem_threshold={threshold} must be a probability in (0, 1].")
    if kept is not None and (threshold is None or kept < 0):
        raise ValueError(
            f"train.ohem_min_kept={kept} must be at least 0, and needs train.ohem_threshold "
            f"(it is {threshold})."
        )


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Names of the classes of `config.data.name`; their numbers if it has no class table."""
    try:
        table = read_class_table(config.data)
    except FileNotFoundError:  # reported by `load_dataset`
        table = None
    if table is None:
        return tuple(str(i) for i in range(config.model.num_classes))
    return tuple(c.name for c in evaluated(table))


def class_weights(train: ConfigDict, num_classes: int) -> tuple[float, ...] | None:
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
                "number per class, or None."
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
