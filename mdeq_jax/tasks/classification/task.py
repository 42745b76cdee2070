"""The task of `MDEQ` classifiers: loss and figures over images."""

import jax
import jax.numpy as jnp

from mdeq_jax.solvers import Solution
from mdeq_jax.tasks.classification.losses import correct_top_k, cross_entropy
from mdeq_jax.tasks.task import Task


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
