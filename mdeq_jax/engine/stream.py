"""Continuous batching of an evaluation on all devices."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby

import flax.linen as nn
import numpy as np

from mdeq_jax.engine.step import measure_batch
from mdeq_jax.parallel import sum_over_devices
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import Task
from mdeq_jax.tasks.continuous_batching import ContinuousBatching


class StreamStep:
    """Stands for the evaluation step; examples stay in flight from one call to the next."""

    def __init__(self, model: nn.Module, task: Task, slots: int):
        """Prepares the programs. `slots` are those of each device."""
        batching = ContinuousBatching(model, task, slots)

        def step(variables, flight, batch, step_budget):
            flight, sums, rows = batching.step(
                variables, flight, batch, step_budget, report=partial(measure_batch, task)
            )
            return sum_over_devices(sums), rows, flight

        self._start = devices.pmap(batching.start)
        self._step = devices.pmap(step, donate_argnums=1)

    def __call__(
        self, replicated_variables, batches: Iterable[dict], step_budget
    ) -> Iterator[tuple[dict, dict]]:
        """The sums and the rows of the examples that left, see `make_eval_step`, batch by batch.

        After the last batch of a shape there is one more result, of the examples that are still in
        flight.

        Args:
            replicated_variables: of `devices.replicate`.
            batches: on the devices. Those of one shape are best in a row.
            step_budget: on the devices.
        """
        for _, alike in groupby(batches, key=_shapes):
            flight, batch = None, {}
            for batch in alike:
                if flight is None:
                    flight = self._start(replicated_variables, batch)
                sums, rows, flight = self._step(replicated_variables, flight, batch, step_budget)
                yield sums, rows
            sums, rows, _ = self._step(replicated_variables, flight, _padding(batch), step_budget)
            yield sums, rows


def _shapes(batch: dict) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in batch.items()}


def _padding(batch: dict) -> dict:
    """A batch of the same shapes without examples, on the devices."""
    return devices.to_devices(
        {
            name: np.zeros((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype)
            for name, x in batch.items()
        }
    )
