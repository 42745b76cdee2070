"""What a task is to the training loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mdeq_jax.solvers import Solution


class Task(NamedTuple):
    """A loss, figures and an inference.

    Attributes:
        loss: (logits, batch) -> scalar. Runs under the axis "batch" of `pmap`; its mean over
            devices is the loss of the whole batch.
        figures: (logits, batch with "mask" `[B]`) -> name -> sum over this device's examples of
            the mask; any shape. "loss" is the sum of each example's own loss.
        summarize: (sums over everything, with "count", the examples) -> name -> number.
        headline: the number by which the best checkpoint is chosen; the higher the better.
        infer: (model, variables, images, step_budget) -> (logits, solution): the forward pass of
            evaluation.
        prepare: images -> images as one forward pass of the network takes them in evaluation.
        restore: (logits of such a pass, images) -> logits at the size of the images.
    """

    loss: Callable[[jax.Array, dict], jax.Array]
    figures: Callable[[jax.Array, dict], dict[str, jax.Array]]
    summarize: Callable[[dict], dict[str, float]]
    headline: str
    infer: Callable[..., tuple[jax.Array, Solution]]
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images
    restore: Callable[[jax.Array, jax.Array], jax.Array] = lambda logits, images: logits


def display_name(name: str) -> str:
    """The name of a figure as people write it."""
    return "mIoU" if name == "miou" else name.replace("_", " ")
