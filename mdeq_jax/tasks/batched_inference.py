"""Inference on examples of one shape, on one device: in batches, or with continuous batching."""

import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.models import ModelOutput
from mdeq_jax.solvers import Solution
from mdeq_jax.tasks.continuous_batching import ContinuousBatching
from mdeq_jax.tasks.idle_time import IdleTime
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.stream_settings import slots_for
from mdeq_jax.tasks.task import Task
from mdeq_jax.tree import PyTree


class BatchedInference:
    """Infers batch after batch, as `eval.continuous_batching` decides.

    Compiles one program, or a second one if "auto" changes to continuous batching.
    """

    def __init__(
        self,
        task: Task,
        trained: TrainedModel,
        summary: Callable[[ModelOutput], PyTree],
        *,
        batch_size: int,
        num_examples: int,
    ):
        """Prepares the programs.

        Args:
            task: of the config.
            trained: the model.
            summary: outputs to a pytree of `[B, ...]` arrays.
            batch_size: B.
            num_examples: how many there are at most.
        """
        model, self._variables = trained.model, jax.device_put(trained.variables)
        self._batches_left = -(-num_examples // batch_size)
        self._idle, self._flight, self._last = IdleTime(), None, {}
        slots = slots_for(task, trained.config, batch_size)
        self._can_stream = slots is not None
        self._streams = self._can_stream and trained.config.eval.continuous_batching == "on"

        def infer(variables, batch):
            out = task.infer(model, variables, task.inputs(batch))
            return summary(out), _rows(out.solution)

        self._infer = jax.jit(infer)
        if slots is None:
            return
        batching = ContinuousBatching(model, task, slots)

        def report(out, done):
            return (), ({"mask": done["mask"], "index": done["index"]}, summary(out))

        def step(variables, flight, batch):
            flight, _, rows = batching.step(variables, flight, batch, report=report)
            return flight, rows

        self._start, self._step = jax.jit(batching.start), jax.jit(step, donate_argnums=1)

    def __call__(self, batch: dict) -> dict[int, PyTree]:
        """The summaries, on the host and by "index", of the examples that are finished.

        Args:
            batch: with "mask" and "index" `[B]`, on the host; padding comes last.
        """
        if self._streams:
            return self._through_slots(batch)
        start = time.perf_counter()
        results, rows = jax.device_get(self._infer(self._variables, batch))
        if self._can_stream:
            self._idle.add(time.perf_counter() - start, {**rows, "mask": batch["mask"]})
            self._batches_left -= 1
            self._streams = self._idle.is_worth_compiling(self._batches_left)
        return _by_index(batch, results)

    def finish(self) -> dict[int, PyTree]:
        """The summaries of the examples that are still in flight."""
        if self._flight is None:
            return {}
        return self._through_slots(jax.tree.map(np.zeros_like, self._last))

    def _through_slots(self, batch: dict) -> dict[int, PyTree]:
        if self._flight is None:
            self._flight, self._last = self._start(self._variables, batch), batch
        self._flight, rows = self._step(self._variables, self._flight, batch)
        return _by_index(*jax.device_get(rows))


def in_order(results: Iterable[dict[int, PyTree]]) -> Iterator[PyTree]:
    """Yields the results of examples 0, 1, 2, ... as soon as all before are there."""
    waiting, following = {}, 0
    for some in results:
        waiting.update(some)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def evaluations(solution: Solution) -> jax.Array:
    """Evaluations of f for each sample `[B]`, without those that it waited for others."""
    batch = solution.steps.shape
    if solution.nfe.ndim or batch == (1,):
        return jnp.broadcast_to(solution.nfe, batch)
    return 1 + jnp.sum(~jnp.isnan(solution.rel_trace), axis=0, dtype=jnp.int32)


def _rows(solution: Solution | None) -> dict[str, jax.Array]:
    """What `IdleTime` counts; nothing without an equilibrium."""
    if solution is None:
        return {}
    nfe = jnp.broadcast_to(solution.nfe, solution.steps.shape)
    return {"status": solution.status, "steps": solution.steps, "nfe": nfe}


def _by_index(batch: dict, results: PyTree) -> dict[int, PyTree]:
    return {
        int(batch["index"][row]): jax.tree.map(lambda x, row=row: x[row], results)
        for row in np.flatnonzero(batch["mask"])
    }
