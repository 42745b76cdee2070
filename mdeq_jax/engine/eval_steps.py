"""The calls that make up one evaluation: a batch at a time, or with continuous batching."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax import hardware
from mdeq_jax.engine.compile_time import announced
from mdeq_jax.engine.step import make_eval_step
from mdeq_jax.engine.stream import StreamStep
from mdeq_jax.runtime import devices
from mdeq_jax.runtime.early_program import EarlyProgram
from mdeq_jax.tasks import Task
from mdeq_jax.tasks.idle_time import IdleTime
from mdeq_jax.tasks.stream_settings import check_stream, num_slots, why_not
from mdeq_jax.tree import PyTree


class EvalResult(NamedTuple):
    """What a call of an evaluation yields, on the host.

    Attributes:
        sums: see `make_eval_step`.
        rows: see there.
        first: whether its program may have been compiled for it.
    """

    sums: dict
    rows: dict
    first: bool


class EvalSteps:
    """Evaluates batch after batch; compiles once.

    With `eval.continuous_batching="auto"` it begins with batches, and goes on with continuous
    batching once they show that it saves more time than its program takes to compile.

    Attributes:
        ordinary: the step of `make_eval_step` on all devices.
    """

    def __init__(self, model: nn.Module, task: Task, config: ConfigDict, batch_size: int):
        """Prepares the programs.

        Args:
            model: of `build_model`.
            task: of `build_task`.
            config: the whole config.
            batch_size: over all devices.

        Raises:
            ValueError: see `check_stream`.
        """
        check_stream(task, config)
        self.ordinary = EarlyProgram(devices.pmap(make_eval_step(model, task)))
        self._config, choice = config, config.eval.continuous_batching
        self._stream, self._idle = None, None
        if choice != "off" and not why_not(task, config):
            share = batch_size // jax.device_count()
            self._stream = StreamStep(model, task, num_slots(config, share))
        self._streams = choice == "on"
        # Measured on CPUs only. Several hosts could decide differently.
        if choice == "auto" and hardware.target().platform == "cpu" and jax.process_count() == 1:
            self._idle = IdleTime()
        self._called = set()

    def __call__(
        self,
        replicated_variables,
        carry: PyTree,
        batches: Iterable[dict],
        step_budget,
        num_batches: int,
    ) -> Iterator[EvalResult]:
        """Yields the results of one call after the other.

        Args:
            replicated_variables: of `devices.replicate`.
            carry: what the first batch finds.
            batches: on the devices.
            step_budget: on the devices.
            num_batches: how many they are.
        """
        batches, left = iter(batches), num_batches
        while not self._streams and (batch := next(batches, None)) is not None:
            start, first = time.perf_counter(), "ordinary" not in self._called
            with self._announced("ordinary", replicated_variables):
                sums, rows, carry = self.ordinary(replicated_variables, carry, batch, step_budget)
            sums, rows = _to_host(sums, rows)
            if self._stream and self._idle:
                seconds = time.perf_counter() - start + self.ordinary.early_s
                self.ordinary.early_s = 0.0  # counts with the first batch
                self._idle.add(seconds, rows)
                left -= 1
                self._streams = self._idle.is_worth_compiling(left)
            yield EvalResult(sums, rows, first)
        if self._streams and self._stream:
            results = self._stream(replicated_variables, batches, step_budget)
            first = "continuous" not in self._called
            with self._announced("continuous", replicated_variables):
                result = next(results, None)
            while result is not None:
                yield EvalResult(*_to_host(*result), first)
                result, first = next(results, None), False

    def compile_job(self, shapes: Callable[[], tuple]) -> Callable[[], None]:
        """A job for a thread that compiles the ordinary step; see `EarlyProgram.job`."""

        def job():
            arguments = shapes()
            with self._announced("ordinary", arguments[0]):
                self.ordinary.job(lambda: arguments)()

        return job

    def _announced(self, step: str, replicated_variables):
        """The context of a call, which announces the first one of each step."""
        if step in self._called:
            return contextlib.nullcontext()
        self._called.add(step)
        return announced("evaluation", replicated_variables, self._config)


def _to_host(sums: dict, rows: dict) -> tuple[dict, dict]:
    return devices.unreplicate(sums), jax.tree.map(np.ravel, devices.fetch(rows))
