"""What the tasks on images share: examples, and classes that must fit the data."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset
from mdeq_jax.tasks.task import Task

ANY_SIZE = (128, 128)  # divisible by the strides of every family


class ImageTask(Task):
    """A task whose batches hold "image" `[B, H, W, 3]` and "label" `[B, ...]`."""

    example_noun = "images"

    @staticmethod
    def example_inputs(config: ConfigDict) -> jax.Array:
        """A black image `[1, H, W, 3]`."""
        return jnp.zeros((1, *(config.data.image_size or ANY_SIZE), 3))

    def inputs(self, batch: dict) -> jax.Array:
        """The images `[B, H, W, 3]`."""
        return batch["image"]

    def check_data(self, dataset: Dataset) -> None:
        """Refuses a data set for another task, or with another number of classes.

        Raises:
            ValueError: names the field to change.
        """
        super().check_data(dataset)
        num_classes = self._config.model.num_classes
        if num_classes != dataset.num_classes:
            raise ValueError(
                f"model.num_classes={num_classes}, but {dataset.name} has {dataset.num_classes} "
                f"classes: set model.num_classes={dataset.num_classes}."
            )
