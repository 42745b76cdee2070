"""Continuous batching of an evaluation: when it is chosen, and its step."""

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
from mdeq_jax.tree import PyTree

CHOICES = ("auto", "on", "off")
# Slots of each device on CPUs, which are as fast with them as with larger batches.
CPU_SLOTS = 16
# Rows of a batch for each slot. The last call has a batch of padding, which should be small.
ROWS = 4
# "auto" needs this many examples a slot. With fewer, the slots are rarely all in use.
ROUNDS = 4


class StreamStep:
    """Stands for the evaluation step; examples stay in flight from one call to the next.

    Attributes:
        batch_size: of the batches that it takes, over all devices.
    """

    def __init__(self, model: nn.Module, task: Task, slots: int, batch_size: int):
        """Prepares the programs. `slots` are those of each device."""
        self.batch_size = batch_size
        batching = ContinuousBatching(model, task, slots)

        def step(variables, flight, batch, step_budget):
            flight, batch, out = batching.step(variables, flight, batch, step_budget)
            return *measure_batch(task, out, batch), flight

        self._start = devices.pmap(batching.start)
        self._step = devices.pmap(step, donate_argnums=1)
        self._flight = None

    def __call__(
        self, replicated_variables, carry, batch: dict, step_budget
    ) -> tuple[dict, dict, PyTree]:
        """The sums and the rows of the examples that left; see `make_eval_step`."""
        if self._flight is None:
            self._flight = self._start(replicated_variables, batch)
        sums, per_sample, self._flight = self._step(
            replicated_variables, self._flight, batch, step_budget
        )
        return sums, per_sample, carry

    def batches(self, batches: Iterable[dict]) -> Iterator[dict]:
        """Batches on the devices, and a last one that hands out what is in flight."""
        self._flight, batch = None, {}
        for batch in batches:
            yield batch
        empty = {
            name: np.zeros((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype)
            for name, x in batch.items()
        }
        yield devices.to_devices(empty)
        self._flight = None


def stream_step(
    model: nn.Module, task: Task, config: ConfigDict, batch_size: int, num_examples: int
) -> StreamStep | None:
    """The step of continuous batching if `eval.continuous_batching` chooses it.

    Args:
        model: of `build_model`.
        task: of `build_task`.
        config: the whole config.
        batch_size: over all devices.
        num_examples: of the split.

    Raises:
        ValueError: see `check_stream`.
    """
    check_stream(model, task, config)
    choice = config.eval.continuous_batching
    if choice == "off" or why_not(model, task, config):
        return None
    slots = num_slots(config, batch_size)
    if choice == "auto" and num_examples < ROUNDS * slots * jax.device_count():
        return None
    rows = min(batch_size // jax.device_count(), ROWS * slots)
    return StreamStep(model, task, slots, rows * jax.device_count())


def num_slots(config: ConfigDict, batch_size: int) -> int:
    """Slots of each device: `eval.slots`, at most its share of a batch."""
    share = batch_size // jax.device_count()
    chosen = CPU_SLOTS if hardware.target().platform == "cpu" else share
    return min(config.eval.slots or chosen, share)


def why_not(model: nn.Module, task: Task, config: ConfigDict) -> str:
    """Why continuous batching is not available; empty if it is."""
    info = GRADIENTS[config.gradient.name]
    if not family_of(config).has_equilibrium:
        return f"model.name={config.model.name!r} has no equilibrium"
    if info.own_iteration or info.needs_inverse:
        return f"gradient.name={config.gradient.name!r} needs the ordinary solve"
    if not task.single_pass:
        return "an example takes several passes of the network, or continues another one"
    return ""


def check_stream(model: nn.Module, task: Task, config: ConfigDict) -> None:
    """Refuses settings of continuous batching that cannot work.

    Raises:
        ValueError: an unknown choice, no slot, or "on" where it is not available.
    """
    choice, slots = config.eval.continuous_batching, config.eval.slots
    if choice not in CHOICES:
        raise ValueError(f"eval.continuous_batching must be one of {CHOICES}; got {choice!r}.")
    if slots is not None and slots < 1:
        raise ValueError(f"eval.slots must be at least 1, or None; got {slots}.")
    if choice == "on" and (reason := why_not(model, task, config)):
        raise ValueError(
            f"eval.continuous_batching='on' is not available: {reason}. Set it to 'auto' or 'off'."
        )
