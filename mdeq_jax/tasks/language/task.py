"""The likelihood of text: the next token's, with memory from segment to segment."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset
from mdeq_jax.data.text.vocabulary import FILE as VOCABULARY_FILE
from mdeq_jax.models import ModelOutput
from mdeq_jax.models.language import Segment
from mdeq_jax.parallel import global_mean
from mdeq_jax.tasks.language.review import review_text
from mdeq_jax.tasks.language.samples import closing_sample, write_samples
from mdeq_jax.tasks.metric import Metric
from mdeq_jax.tasks.requests import GenerationRequest, TrainedModel
from mdeq_jax.tasks.task import Task, solve_report
from mdeq_jax.tree import PyTree
from mdeq_jax.viz.review import Review

PERPLEXITY = Metric("perplexity", higher_is_better=False, format=",.2f")
BITS = Metric("bits_per_character", higher_is_better=False, format=".3f")


class LanguageModel(Task):
    """Mean -log p of the next token in nats; perplexity, or bits per character.

    Batches hold "tokens" and "targets" `[B, T]` int32, "valid" `[B, T]` bool, which is False for
    targets that do not count, and "start" `[B]` bool: whether the segment begins a text, so that
    its memory is empty. Otherwise row i continues row i of the batch before.

    The loss is the mean over the valid targets of all devices; with `train.accumulate_steps` over
    each part of the batch, whose losses are averaged.
    """

    name = "language_model"
    example_noun = "tokens"
    model_files = (VOCABULARY_FILE,)
    row_noun = "segments"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.metrics = (BITS,) if config.data.unit == "character" else (PERPLEXITY,)

    @staticmethod
    def example_inputs(config: ConfigDict) -> jax.Array:
        """The first token, twice."""
        del config
        return jnp.zeros((1, 2), jnp.int32)

    def inputs(self, batch: dict) -> Segment:
        """The tokens, and the memory if there is one."""
        return Segment(batch["tokens"], batch.get("memory"))

    def initial_carry(self, model: nn.Module, batch_size: int) -> PyTree:
        """An empty memory, whose arrays are zeros."""
        return model.empty_memory(batch_size)

    def with_carry(self, batch: dict, carry: PyTree) -> dict:
        """The batch with the memory, which is empty for rows that begin a text."""
        start = batch["start"]

        def emptied(x):
            return jnp.where(jnp.expand_dims(start, tuple(range(1, x.ndim))), jnp.zeros_like(x), x)

        return {**batch, "memory": jax.tree.map(emptied, carry)}

    def next_carry(self, outputs: Any) -> PyTree:
        """The memory after the segment."""
        return outputs.memory

    def loss(self, outputs: ModelOutput, batch: dict) -> jax.Array:
        """This device's share of the mean over the valid targets of all devices."""
        nll = outputs.logits.nll(batch["targets"])
        valid = batch["valid"].astype(nll.dtype)
        return global_mean(valid * nll, valid)

    def metric_sums(self, outputs: ModelOutput, batch: dict) -> dict[str, jax.Array]:
        """Sum of -log p over the valid targets, and their number."""
        nll = outputs.logits.nll(batch["targets"])
        counted = batch["valid"] * batch["mask"][:, None]
        return {"loss": jnp.sum(counted * nll), "count": jnp.sum(counted)}

    def finalize(self, sums: dict) -> dict[str, float]:
        """The mean, and what it is in perplexity or bits."""
        loss = float(sums["loss"] / sums["count"])
        numbers = {"loss": loss, "perplexity": float(np.exp(loss))}
        if BITS in self.metrics:
            numbers["bits_per_character"] = loss / math.log(2)
        return numbers

    def complete(self, config: ConfigDict, dataset: Dataset) -> ConfigDict:
        """The config with the size of the vocabulary and the unit of its tokens."""
        if dataset.vocabulary is None:
            return config  # refused by `check_data`
        config = config.copy_and_resolve_references()
        section = vocabulary_section(config)
        if section.vocab_size is None:
            section.vocab_size = dataset.vocabulary.size
        config.data.unit = dataset.vocabulary.unit
        return config

    def check_data(self, dataset: Dataset) -> None:
        """Refuses a data set without text, or with another number of tokens than the model has.

        Raises:
            ValueError: names the field to change.
        """
        super().check_data(dataset)
        size, tokens = vocabulary_section(self._config).vocab_size, dataset.vocabulary
        if tokens is None:
            raise ValueError(f"{dataset.name} has no vocabulary, which a language model needs.")
        if size != tokens.size:
            raise ValueError(
                f"The model has {size:,} tokens (vocab_size in config.model), but {dataset.name} "
                f"has {tokens.size:,}: leave vocab_size unset to take that of the data, or choose "
                "the data that the model is for."
            )

    def exported_call(self, model: nn.Module) -> tuple[Any, Callable[[dict, Any], dict]]:
        """One step: a token and the memory, to the next token's log p and the next memory.

        The memory is a flat tuple of arrays, zeros at first.
        """
        empty, structure = jax.tree.flatten(self.initial_carry(model, 1))

        def call(variables, inputs):
            memory = jax.tree.unflatten(structure, inputs["memory"])
            out: Any = model.apply(variables, Segment(inputs["tokens"], memory))
            return {
                "log_probs": out.logits.log_probs()[:, -1],
                "memory": tuple(jax.tree.leaves(out.memory)),
                **solve_report(out.solution),
            }

        return {"tokens": jnp.zeros((1, 1), jnp.int32), "memory": tuple(empty)}, call

    def generate(self, trained: TrainedModel, request: GenerationRequest, workdir: Path) -> str:
        """Continues the prompts; writes `workdir/samples.txt`."""
        return write_samples(trained, request, workdir)

    def review(self, trained: TrainedModel, dataset: Dataset, max_examples: int) -> Review:
        """The segments with the largest mean loss, of the first ones of each column."""
        return review_text(self, trained, dataset, max_examples)

    def closing_lines(self, trained: TrainedModel, workdir: Path) -> list[str]:
        """A short sample."""
        return closing_sample(trained, workdir)


def vocabulary_section(config: ConfigDict) -> ConfigDict:
    """The part of `config.model` with the size of the vocabulary.

    Raises:
        ValueError: the model has none.
    """
    for part in config.model.values():
        if isinstance(part, ConfigDict) and "vocab_size" in part:
            return part
    raise ValueError(
        f"model.name={config.model.name!r} is no language model: config.model has no part with a "
        "vocab_size. Begin the config with default.get_config(NAME OF THE FAMILY)."
    )
