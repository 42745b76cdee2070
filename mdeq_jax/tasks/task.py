"""The task seam: from outputs and batches to a loss, metrics and predictions.

The engine, the runtime and the diagnostics reach a task through the classes of this file only. They
know neither what an example is nor how a metric is computed.
"""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset
from mdeq_jax.models import ForwardOptions, ModelOutput
from mdeq_jax.solvers import Solution
from mdeq_jax.tasks.metric import Metric
from mdeq_jax.tasks.requests import GenerationRequest, TrainedModel
from mdeq_jax.tree import PyTree
from mdeq_jax.viz.review import Review


def solve_report(solution: Solution | None) -> dict[str, jax.Array]:
    """Residual, step and status `[B]` of a solve; nothing without one."""
    if solution is None:
        return {}
    return {
        "rel_residual": solution.rel_residual,
        "steps": solution.steps,
        "status": solution.status,
    }


class Task(abc.ABC):
    """The objective of a model: its loss, metrics and predictions.

    A task is built from a config, and refuses settings that cannot work.

    Metrics are sums over examples, or over parts of them. Padded examples never count, and sums
    over batches, devices and hosts add up. `finalize` turns the sums into numbers.

    Attributes:
        name: key in `TASKS`; a data set names its task so.
        example_noun: what several examples are called, as in "images".
        row_noun: what several rows of a batch are called, each of which is one solve; None: the
            same.
        metrics: those of the summary line; the first is the primary one, which chooses the best
            checkpoint.
        own_fields: fields of the config that only this task reads, "part.field", with the value at
            which they have no effect. Other tasks refuse another value.
        model_files: names of files of the work directory that a model is shared with, besides its
            weights and its config.
    """

    name: ClassVar[str]
    example_noun: ClassVar[str] = "examples"
    row_noun: ClassVar[str | None] = None
    metrics: tuple[Metric, ...]
    own_fields: ClassVar[dict[str, Any]] = {}
    model_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigDict):
        self._config = config

    @property
    def primary_metric(self) -> Metric:
        """The metric by which the best checkpoint is chosen."""
        return self.metrics[0]

    @staticmethod
    @abc.abstractmethod
    def example_inputs(config: ConfigDict) -> Any:
        """Inputs of a model for one example, of any values, to initialise it with."""

    @abc.abstractmethod
    def inputs(self, batch: dict) -> Any:
        """The inputs of the model, a pytree of `[B, ...]` arrays."""

    def batch_size(self, batch: dict) -> int:
        """The number of examples in a batch."""
        return jax.tree.leaves(self.inputs(batch))[0].shape[0]

    @property
    def augments(self) -> bool:
        """Whether `augment` changes anything with these settings."""
        return False

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """Random changes to a batch of a training step, on the device.

        Args:
            batch: this device's examples.
            key: random key, a different one on each device.

        Returns:
            A batch whose entries all begin with the number of examples.
        """
        del key
        return batch

    def initial_carry(self, model: nn.Module, batch_size: int) -> PyTree:
        """The state before the first batch.

        Row i of a batch may continue row i of the previous batch, in training and in evaluation.
        The carry is the state that the model takes over from that row. Checkpoints contain it.

        Args:
            model: of `build_model`.
            batch_size: number of examples.

        Returns:
            A pytree of `[batch_size, ...]` arrays; empty if each batch stands alone.
        """
        del model, batch_size
        return ()

    def with_carry(self, batch: dict, carry: PyTree) -> dict:
        """A batch with the carry added, for `inputs`.

        Args:
            batch: without a carry; `inputs` must accept that too.
            carry: from `initial_carry`, or from `next_carry` of the previous batch.
        """
        del carry
        return batch

    def next_carry(self, outputs: ModelOutput) -> PyTree:
        """The carry for the next batch: arrays of the same shapes as those of `initial_carry`.

        Args:
            outputs: of `infer`, or of a training step.
        """
        del outputs
        return ()

    @abc.abstractmethod
    def loss(self, outputs: ModelOutput, batch: dict) -> jax.Array:
        """The scalar to differentiate.

        It runs under the batch axis of `mdeq_jax.parallel`. Its mean over the devices is the loss
        of the whole batch.
        """

    @abc.abstractmethod
    def metric_sums(self, outputs: ModelOutput, batch: dict) -> dict[str, jax.Array]:
        """Sums over this device's examples.

        Args:
            outputs: of `infer`, or of a training step.
            batch: with "mask" `[B]`, the weight of each example: 1, or 0 for padding.

        Returns:
            Arrays of any shape by name. "loss" is the sum of each example's own loss. "count" is
            the number of examples; without it, each row of the batch is one.
        """

    @abc.abstractmethod
    def finalize(self, sums: dict) -> dict[str, float]:
        """Numbers by name, "loss" and those of `metrics` among them.

        Args:
            sums: of `metric_sums` over everything, with "count", the number of examples.
        """

    def infer(
        self, model: nn.Module, variables: dict, inputs: Any, step_budget: jax.Array | None = None
    ) -> ModelOutput:
        """The forward pass of evaluation."""
        out: Any = model.apply(variables, inputs, forward=ForwardOptions(step_budget=step_budget))
        return out

    @property
    def single_pass(self) -> bool:
        """Whether `infer` is one forward pass in which every example stands alone.

        It is then the model's pass on `to_network_input`, followed by `to_target_size`, and
        examples may be solved one after the other in any order (`eval.continuous_batching`).
        """
        return False

    def exported_call(self, model: nn.Module) -> tuple[Any, Callable[[dict, Any], dict]]:
        """The evaluation of a batch that export.py exports, in plain containers.

        Returns:
            Inputs for one example, of any values, and a function from variables and such inputs to
            a dict of arrays: "logits" and, with an equilibrium, the report of each sample's solve.
        """

        def call(variables, inputs):
            out: Any = model.apply(variables, inputs)
            return {"logits": out.logits, **solve_report(out.solution)}

        return self.example_inputs(self._config), call

    def to_network_input(self, inputs: Any) -> Any:
        """Inputs as one forward pass of the network takes them in evaluation."""
        return inputs

    def to_target_size(self, outputs: ModelOutput, inputs: Any) -> ModelOutput:
        """Outputs of such a pass at the size of the original inputs."""
        return outputs

    def describe(self, metrics: dict[str, float]) -> list[str]:
        """The task's part of the summary line of an evaluation.

        Args:
            metrics: with "eval/NAME" for each number of `finalize`.
        """
        return [metric.describe(metrics[f"eval/{metric.name}"]) for metric in self.metrics]

    def complete(self, config: ConfigDict, dataset: Dataset) -> ConfigDict:
        """The config with the fields that the data determine, unless they are set."""
        del dataset
        return config

    def check_data(self, dataset: Dataset) -> None:
        """Refuses a data set that this task, or the model of the config, does not fit.

        Raises:
            ValueError: the data set is for another task.
        """
        if dataset.task != self.name:
            raise ValueError(
                f"model.name={self._config.model.name!r} is for {self.name}, but {dataset.name} is "
                f"a data set for {dataset.task}: choose another data.name or another model.name."
            )

    def closing_lines(self, trained: TrainedModel, workdir: Path) -> list[str]:
        """Lines to print at the end of a training, such as an example of what was learned."""
        del trained, workdir
        return []

    def generate(self, trained: TrainedModel, request: GenerationRequest, workdir: Path) -> str:
        """Makes new examples and writes them into `workdir`.

        Args:
            trained: the model.
            request: how many, and how.
            workdir: work directory.

        Returns:
            The examples, and lines on how they were made and where they were written.

        Raises:
            ValueError: this task makes no examples, or the request cannot be met.
        """
        raise ValueError(f"--generate is not available for {self.name}.")

    def review(self, trained: TrainedModel, dataset: Dataset, max_examples: int) -> Review:
        """What the model gets wrong on the evaluation split, for the page of a run.

        Args:
            trained: the model.
            dataset: its evaluation split is read.
            max_examples: how many to evaluate at most.
        """
        del trained, dataset, max_examples
        return Review(f"The task {self.name} does not show its worst examples.")

    def predict(self, trained: TrainedModel, source: str | Path, workdir: Path) -> str:
        """Predicts on new examples, and writes the results into `workdir`.

        Args:
            trained: the model.
            source: where the examples are.
            workdir: work directory.

        Returns:
            A line that lists the written files.

        Raises:
            ValueError: this task has no prediction, or an example cannot be read.
        """
        raise ValueError(f"--predict is not available for {self.name}.")

    def save_predictions(self, trained: TrainedModel, folder: str | Path) -> dict[str, float]:
        """Writes the predictions on the evaluation split into `folder`.

        Returns:
            The metrics of these predictions, "eval/NAME".

        Raises:
            ValueError: this task cannot do so.
        """
        raise ValueError(f"--save_predictions is not available for {self.name}.")
