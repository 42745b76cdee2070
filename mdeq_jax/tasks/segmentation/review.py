"""What a segmentation network gets wrong: the confusions of pixels, the worst images."""

import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import IGNORE_LABEL, Dataset
from mdeq_jax.layers import resize_bilinear
from mdeq_jax.tasks.image_review import Judged, review_images, shown_image, shrunk
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.segmentation.inference import size_of
from mdeq_jax.tasks.segmentation.losses import pixel_cross_entropy
from mdeq_jax.tasks.segmentation.segmenter import class_table
from mdeq_jax.tasks.task import Task
from mdeq_jax.viz.review import Example, Review
from mdeq_jax.viz.segmentation import colorize


def review_segmentation(
    task: Task, trained: TrainedModel, dataset: Dataset, max_examples: int
) -> Review:
    """Evaluates images spread over the evaluation split; see `review_images`.

    Raises:
        ValueError: the data set has no colours for its classes.
    """
    colors = tuple(c.color for c in class_table(trained.config))

    def judge(outputs, batch):
        labels = batch["label"]
        logits = resize_bilinear(outputs.logits, size_of(labels))
        losses = pixel_cross_entropy(logits, labels, IGNORE_LABEL)
        pixels = jnp.maximum(jnp.sum(labels != IGNORE_LABEL, axis=(1, 2)), 1)
        return jnp.sum(losses, axis=(1, 2)) / pixels, logits

    def show(name: str, judged: Judged) -> Example:
        counted = judged.label != IGNORE_LABEL
        right = np.mean(judged.prediction[counted] == judged.label[counted]) if counted.any() else 0
        pictures = (
            ("image", shown_image(judged.image, dataset)),
            ("label", shrunk(colorize(judged.label, colors), smooth=False)),
            ("prediction", shrunk(colorize(judged.prediction, colors), smooth=False)),
        )
        return Example(name, judged.loss, (("pixels right", f"{100 * right:.1f} %"),), pictures)

    return review_images(
        task, trained, dataset, max_examples, judge, show, "pixels", ignore_label=IGNORE_LABEL
    )
