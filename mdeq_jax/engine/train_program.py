"""The training step as a run calls it: mapped over the devices, compiled before its first call."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Self

import jax
import optax
from ml_collections import ConfigDict

from mdeq_jax.data import TrainLoader
from mdeq_jax.engine.compile_time import announced
from mdeq_jax.engine.state import TrainState
from mdeq_jax.engine.step import Report, make_train_step, training_config
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.runtime.early_program import can_compile_early
from mdeq_jax.runtime.garbage import no_collection
from mdeq_jax.runtime.in_background import InBackground
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree


class TrainProgram:
    """The training step of both phases, of which each is one compiled program.

    On CPUs and TPUs a thread traces and compiles them from shapes alone, the first phase first,
    while this one initialises the network and prepares the run.

    Use it as a context manager: leaving waits for a program that is being compiled.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        optimizer: optax.GradientTransformation,
        loader: TrainLoader,
    ):
        """Prepares the step; nothing is compiled yet.

        Args:
            config: the whole config.
            task: of `build_task`.
            optimizer: of `build_optimizer`.
            loader: whose batches the step takes.
        """
        self._config, self._task, self._loader = config, task, loader
        self._model = build_model(training_config(config))
        step = make_train_step(self._model, optimizer, task, config, loader.steps_per_epoch)
        self._mapped = devices.pmap(step, static_argnums=(3,), donate_argnums=(0, 1))
        self._programs = InBackground({})
        self._called = set()  # phases
        self._traced, self._started = threading.Event(), False

    def compile_early(
        self,
        state: TrainState,
        first_step: int,
        num_steps: int,
        later: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    ) -> None:
        """Starts to compile the phases of the steps to come, where that is possible.

        Args:
            state: shapes and types, of one device.
            first_step: steps that are done already.
            num_steps: of the whole training.
            later: jobs of `EarlyProgram`, by name. The same thread does them while training runs.
        """
        if not can_compile_early():
            return
        pretrain_steps = self._config.train.pretrain_steps
        phases = []
        if first_step < min(pretrain_steps, num_steps):
            phases.append(True)
        if max(first_step, pretrain_steps) < num_steps:
            phases.append(False)
        self._started = bool(phases)
        jobs = {phase: partial(self._compile_or_fail, state, phase) for phase in phases}
        self._programs = InBackground({**jobs, **later})

    def _compile_or_fail(self, state: TrainState, pretraining: bool) -> Callable:
        try:
            return self._compile(state, pretraining)
        finally:
            self._traced.set()  # so that nobody waits for what failed

    def _compile(self, state: TrainState, pretraining: bool) -> Callable:
        with announced(_name(pretraining), state.variables, self._config):
            with no_collection():
                lowered = self._mapped.lower(*self._shapes(state), pretraining)
            self._traced.set()
            return lowered.compile()

    def wait_until_traced(self) -> None:
        """Waits while the thread of `compile_early` traces the first phase.

        Python runs one thread at a time: what is traced or compiled meanwhile delays it by more
        than it takes.
        """
        if self._started:
            self._traced.wait()

    def _shapes(self, state: TrainState) -> tuple[TrainState, PyTree, dict]:
        """Shapes and types of the arguments, with the axis of the local devices."""
        size = self._config.train.batch_size
        carry = jax.eval_shape(lambda: self._task.initial_carry(self._model, size))
        batch = self._loader.batch_shapes()
        return (
            devices.replicated_shapes(state),
            devices.split_shapes(carry),
            devices.split_shapes(batch),
        )

    def __call__(
        self, state: TrainState, carry: PyTree, batch: dict, pretraining: bool
    ) -> tuple[TrainState, PyTree, Report]:
        """Starts a step on the devices; see `make_train_step`. `state` and `carry` are donated."""
        if pretraining in self._programs:
            return self._programs.result(pretraining)(state, carry, batch)
        if pretraining in self._called:
            return self._mapped(state, carry, batch, pretraining)
        self._called.add(pretraining)
        with announced(_name(pretraining), state.variables, self._config):
            return self._mapped(state, carry, batch, pretraining)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self._programs.__exit__()


def _name(pretraining: bool) -> str:
    return "pretraining" if pretraining else "training"
