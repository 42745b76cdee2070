"""What a model is trained for: a loss to differentiate and figures to report.

A figure is a sum over examples; it is divided by the sum of the mask when it is reported, so that
padding never counts and batches of any size add up.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdeq_jax.training.losses import correct_top_k, cross_entropy


class Task(NamedTuple):
    """A loss and figures.

    Attributes:
        loss: (logits, batch) -> scalar, the mean over this device's examples.
        figures: (logits, batch with "mask") -> name -> sum over the examples of the mask.
    """

    loss: Callable[[jax.Array, dict], jax.Array]
    figures: Callable[[jax.Array, dict], dict[str, jax.Array]]


def classification(config) -> Task:
    """Cross-entropy over classes; accuracy, and top-5 accuracy where there are more classes."""
    smoothing = config.train.label_smoothing

    def loss(logits, batch):
        return jnp.mean(cross_entropy(logits, batch["label"], smoothing=smoothing))

    def figures(logits, batch):
        label, mask = batch["label"], batch["mask"]
        sums = {
            "loss": jnp.sum(mask * cross_entropy(logits, label)),
            "accuracy": jnp.sum(mask * correct_top_k(logits, label, 1)),
        }
        if logits.shape[-1] > 5:
            sums["top5_accuracy"] = jnp.sum(mask * correct_top_k(logits, label, 5))
        return sums

    return Task(loss, figures)


TASKS = {"mdeq_classifier": classification}


def build_task(config) -> Task:
    """The task of `config.model.name`.

    Raises:
        ValueError: there is none yet.
    """
    if config.model.name not in TASKS:
        raise ValueError(
            f"There is no training task for model.name={config.model.name!r} yet; "
            f"there is one for {sorted(TASKS)}."
        )
    return TASKS[config.model.name](config)
