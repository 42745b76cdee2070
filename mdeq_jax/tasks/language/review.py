"""What a language model predicts worst: segments of the evaluation text."""

import heapq
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import Dataset, EvalLoader, Vocabulary
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.task import Task
from mdeq_jax.viz.review import Example, Review

NUM_WORST = 6


def review_text(task: Task, trained: TrainedModel, dataset: Dataset, max_examples: int) -> Review:
    """Evaluates segments in order, with the memory of those before, on one device.

    Args:
        task: of the config.
        trained: the model.
        dataset: its evaluation split is read, and has a vocabulary.
        max_examples: segments to evaluate at most, but one of each column at least.
    """
    config, model = trained.config, trained.model
    rows = config.eval.batch_size or config.train.batch_size
    loader, vocabulary = EvalLoader(dataset, rows), dataset.vocabulary
    if vocabulary is None:
        raise ValueError(f"{dataset.name} has no vocabulary, which a language model needs.")

    @jax.jit
    def step(variables, carry, batch):
        batch = task.with_carry(batch, carry)
        outputs: Any = task.infer(model, variables, task.inputs(batch))
        return outputs.logits.nll(batch["targets"]), task.next_carry(outputs)

    variables, carry = jax.device_put(trained.variables), task.initial_carry(model, rows)
    worst, number = [], 0
    for batch in loader:
        if number and number + rows > max_examples:
            break
        nll, carry = step(variables, carry, jax.tree.map(jnp.asarray, batch))
        for losses, targets, valid in zip(np.asarray(nll), batch["targets"], batch["valid"]):
            if valid.sum() < valid.size / 2:  # the end of a text: too short to compare
                continue
            number += 1
            entry = (float(losses[valid].mean()), -number, targets[valid], losses[valid])
            heapq.heappush(worst, entry)
            if len(worst) > NUM_WORST:
                heapq.heappop(worst)
    ordered = sorted(worst, key=lambda row: row[:2], reverse=True)
    return Review(
        f"Of {number:,} segments of the evaluation text, the model predicts these worst (step "
        f"{trained.step:,}). The darker a {vocabulary.unit}, the less likely it was; the loss is "
        f"the mean -log p in nats.",
        tuple(
            Example(f"segment {-n}", loss, tokens=_tokens(vocabulary, targets, losses))
            for loss, n, targets, losses in ordered
        ),
    )


def _tokens(
    vocabulary: Vocabulary, targets: np.ndarray, losses: np.ndarray
) -> tuple[tuple[str, float], ...]:
    """Each token as text, words with the space after them, and its loss."""
    texts = [vocabulary.tokens[target] for target in targets]
    if vocabulary.unit == "word":
        texts = [f"{text} " for text in texts]
    return tuple((text, float(loss)) for text, loss in zip(texts, losses))
