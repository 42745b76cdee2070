"""Continuous batching of an evaluation: whether it is available, and its step."""

from collections.abc import Iterable, Iterator

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax import hardware
from mdeq_jax.engine.step import measure_batch
from mdeq_jax.implicit import GRADIENTS
from mdeq_jax.models import family_of
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import Task
from mdeq_jax.tasks.continuous_batching import ContinuousBatching

CHOICES = ("auto", "on", "off")
# Slots of each device on CPUs, which are as fast with them as with larger batches.
CPU_SLOTS = 16


class StreamStep:
    """Stands for the evaluation step; examples stay in flight from one call to the next."""

    def __init__(self, model: nn.Module, task: Task, slots: int):
        """Prepares the programs. `slots` are those of each device."""
        batching = ContinuousBatching(model, task, slots)

        def step(variables, flight, batch, step_budget):
            flight, batch, out = batching.step(variables, flight, batch, step_budget)
            return *measure_batch(task, out, batch), flight

        self._start = devices.pmap(batching.start)
        self._step = devices.pmap(step, donate_argnums=1)

    def __call__(
        self, replicated_variables, batches: Iterable[dict], step_budget
    ) -> Iterator[tuple[dict, dict]]:
        """The sums and the rows of the examples that left, see `make_eval_step`, batch by batch.

        After the last batch there is one more result, of the examples that are still in flight.

        Args:
            replicated_variables: of `devices.replicate`.
            batches: on the devices, all of one shape.
            step_budget: on the devices.
        """
        flight, batch = None, {}
        for batch in batches:
            if flight is None:
                flight = self._start(replicated_variables, batch)
            sums, rows, flight = self._step(replicated_variables, flight, batch, step_budget)
            yield sums, rows
        if flight is not None:
            sums, rows, _ = self._step(replicated_variables, flight, _padding(batch), step_budget)
            yield sums, rows


def _padding(batch: dict) -> dict:
    """A batch of the same shapes without examples, on the devices."""
    return devices.to_devices(
        {
            name: np.zeros((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype)
            for name, x in batch.items()
        }
    )


def num_slots(config: ConfigDict, batch_size: int) -> int:
    """Slots of each device: `eval.slots`, at most its share of a batch."""
    share = batch_size // jax.device_count()
    chosen = CPU_SLOTS if hardware.target().platform == "cpu" else share
    return min(config.eval.slots or chosen, share)


def why_not(task: Task, config: ConfigDict) -> str:
    """Why continuous batching is not available; empty if it is."""
    info = GRADIENTS[config.gradient.name]
    if not family_of(config).has_equilibrium:
        return f"model.name={config.model.name!r} has no equilibrium"
    if info.own_iteration or info.needs_inverse:
        return f"gradient.name={config.gradient.name!r} needs the ordinary solve"
    if not task.single_pass:
        return "an example takes several passes of the network, or continues another one"
    return ""


def check_stream(task: Task, config: ConfigDict) -> None:
    """Refuses settings of continuous batching that cannot work.

    Raises:
        ValueError: an unknown choice, no slot, or "on" where it is not available.
    """
    choice, slots = config.eval.continuous_batching, config.eval.slots
    if choice not in CHOICES:
        raise ValueError(f"eval.continuous_batching must be one of {CHOICES}; got {choice!r}.")
    if slots is not None and slots < 1:
        raise ValueError(f"eval.slots must be at least 1, or None; got {slots}.")
    if choice == "on" and (reason := why_not(task, config)):
        raise ValueError(
            f"eval.continuous_batching='on' is not available: {reason}. Set it to 'auto' or 'off'."
        )
