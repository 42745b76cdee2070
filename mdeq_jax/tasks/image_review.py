"""What a model of images gets wrong: the confusions, and the images with the largest loss."""

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import Dataset
from mdeq_jax.models import ModelOutput
from mdeq_jax.tasks.file_names import file_name
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.task import Task
from mdeq_jax.viz.review import Example, Review

NUM_WORST = 12
MAX_SIDE = 360  # pixels of a picture on the page


class Judged(NamedTuple):
    """An image, and what the model made of it, on the host.

    Attributes:
        loss: of the image.
        index: in the split.
        image: as in the batch.
        label: `[...]`.
        prediction: `[...]` predicted classes.
        confidence: mean probability of the predicted classes.
    """

    loss: float
    index: int
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confidence: float


def review_images(
    task: Task,
    trained: TrainedModel,
    dataset: Dataset,
    max_examples: int,
    judge: Callable[[ModelOutput, dict], tuple[jax.Array, jax.Array]],
    show: Callable[[str, Judged], Example],
    counted: str,
    ignore_label: int | None = None,
) -> Review:
    """Evaluates images spread evenly over the evaluation split, on one device.

    Args:
        task: of the config.
        trained: the model.
        dataset: its evaluation split is read.
        max_examples: images to evaluate at most.
        judge: outputs and batch to losses `[B]` and logits `[B, ..., C]` at the size of the labels.
        show: the name of an image, and what the model made of it, for the page.
        counted: what the confusion matrix counts.
        ignore_label: label that it does not count.
    """
    classes, worst, number = dataset.num_classes, [], 0
    confusion = np.zeros(classes * classes, np.int64)
    for judged in _judge_all(task, trained, dataset, max_examples, judge):
        known = judged.label != ignore_label
        cells = judged.label[known].astype(np.int64) * classes + judged.prediction[known]
        confusion += np.bincount(cells, minlength=classes**2)
        number += 1
        # The number of the image decides between equal losses.
        heapq.heappush(worst, (judged.loss, -number, judged))
        if len(worst) > NUM_WORST:
            heapq.heappop(worst)
    ordered = [judged for *_, judged in sorted(worst, key=lambda row: row[:2], reverse=True)]
    examples = tuple(show(file_name(dataset.eval, judged.index), judged) for judged in ordered)
    which = (
        f"all {number:,}" if number == dataset.num_eval else f"{number:,} of {dataset.num_eval:,}"
    )
    return Review(
        f"Of {which} evaluation images, these have the largest loss (step {trained.step:,}).",
        examples,
        confusion.reshape(classes, classes),
        dataset.class_names,
        counted,
    )


def _judge_all(
    task: Task, trained: TrainedModel, dataset: Dataset, max_examples: int, judge: Callable
) -> Iterator[Judged]:
    """Yields the images in the order of the split; those that cannot be read are left out."""
    config, number = trained.config, min(max_examples, dataset.num_eval)
    indices = np.linspace(0, dataset.num_eval - 1, number).round().astype(int)
    size = min(config.eval.batch_size or config.train.batch_size, number)

    @jax.jit
    def step(variables, batch):
        outputs = task.infer(trained.model, variables, task.inputs(batch))
        losses, logits = judge(outputs, batch)
        confidence = jnp.max(jax.nn.softmax(logits), axis=-1).reshape(len(losses), -1).mean(axis=1)
        return losses, jnp.argmax(logits, axis=-1), confidence

    variables = jax.device_put(trained.variables)
    for start in range(0, number, size):
        chosen = indices[start : start + size]
        padded = np.pad(chosen, (0, size - len(chosen)), mode="edge")
        batch, skipped = dataset.eval.make_batch(padded, (0, 0))
        results = jax.device_get(step(variables, batch))
        left_out = {example.position for example in skipped}
        for i, index in enumerate(chosen):
            if i not in left_out:
                loss, prediction, confidence = (array[i] for array in results)
                image, label = batch["image"][i], np.asarray(batch["label"][i])
                yield Judged(float(loss), int(index), image, label, prediction, float(confidence))


def shown_image(image: np.ndarray, dataset: Dataset) -> np.ndarray:
    """An image of a batch as uint8 `[h, w, 3]`, of `MAX_SIDE` pixels at most."""
    if dataset.mean is None or dataset.std is None:
        raise ValueError(f"{dataset.name} does not say how its images are normalised.")
    pixels = np.clip(255 * (image * np.array(dataset.std) + np.array(dataset.mean)), 0, 255)
    return shrunk(np.rint(pixels).astype(np.uint8))


def shrunk(picture: np.ndarray, *, smooth: bool = True) -> np.ndarray:
    """A picture of `MAX_SIDE` pixels at most; without `smooth` with no colours in between."""
    import cv2

    height, width = picture.shape[:2]
    factor = MAX_SIDE / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smooth else cv2.INTER_NEAREST)
