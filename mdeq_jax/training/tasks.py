"""What a model is trained for: a loss to differentiate, figures to report, an inference.

A figure is a sum over examples (or pixels), so that padding never counts, batches of any size add
up, and devices and hosts add up; `Task.summarize` makes numbers to read of the sums.
"""

import jax
import jax.numpy as jnp

from mdeq_jax.solvers import Solution
from mdeq_jax.training.losses import correct_top_k, cross_entropy
from mdeq_jax.training.segmentation import check_settings, segmentation
from mdeq_jax.training.task import Task


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

    def summarize(sums):
        count = sums["count"]
        return {name: float(total / count) for name, total in sums.items() if name != "count"}

    return Task(loss, figures, summarize, "accuracy", forward)


def forward(model, variables, images, step_budget=None) -> tuple[jax.Array, Solution]:
    """One forward pass in evaluation mode."""
    out = model.apply(variables, images, step_budget=step_budget)
    return out.logits, out.solution


TASKS = {"mdeq_classifier": classification, "mdeq_segmenter": segmentation}


def build_task(config) -> Task:
    """The task of `config.model.name`.

    Raises:
        ValueError: there is none yet, or a setting that cannot work or that it has no use for.
    """
    if config.model.name not in TASKS:
        raise ValueError(
            f"There is no training task for model.name={config.model.name!r} yet; "
            f"there is one for {sorted(TASKS)}."
        )
    check_settings(config)
    return TASKS[config.model.name](config)
