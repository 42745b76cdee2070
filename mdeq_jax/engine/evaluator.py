"""Evaluation over a whole split."""

import time
from collections.abc import Callable
from itertools import islice
from typing import cast

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset, EvalLoader, Prefetcher
from mdeq_jax.diagnostics.spectral_radius import BATCHES_BEFORE, make_spectral_radius
from mdeq_jax.engine.eval_steps import EvalSteps
from mdeq_jax.models import EquilibriumModel
from mdeq_jax.runtime import devices, hosts
from mdeq_jax.solvers import Status
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree


class Evaluator:
    """Evaluates variables on a data set; compiles once."""

    def __init__(self, model: nn.Module, task: Task, dataset: Dataset, config: ConfigDict):
        """Prepares the loader and the step.

        Args:
            model: of `build_model`.
            task: of `build_task`.
            dataset: its evaluation split is read.
            config: the whole config.
        """
        batch_size = config.eval.batch_size or config.train.batch_size
        devices.check_batch_size(batch_size, "eval.batch_size")
        self._config, self._task = config, task
        rows = batch_size // jax.process_count()
        self._initial_carry = lambda: devices.split(task.initial_carry(model, rows))
        self._loader = EvalLoader(
            dataset,
            batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.data.num_workers,
        )
        self._steps = EvalSteps(model, task, config, batch_size)
        self._radius = devices.pmap(
            make_spectral_radius(cast(EquilibriumModel, model), task, config.seed)
        )

    def compile_job(self, variables: PyTree) -> Callable[[], None]:
        """A job for a thread that compiles the step; see `EarlyProgram.job`.

        Args:
            variables: shapes and types, of one device.
        """

        def shapes():
            return (
                devices.replicated_shapes(variables),
                jax.eval_shape(self._initial_carry),
                devices.split_shapes(self._loader.batch_shapes()),
                devices.replicated_shapes(np.int32(0)),
            )

        return self._steps.compile_job(shapes)

    def __call__(self, replicated_variables, step_budget: int | None = None) -> dict[str, float]:
        """Evaluates every example of the split once.

        Args:
            replicated_variables: of `devices.replicate`.
            step_budget: most forward solver steps, at most `solver.forward.max_steps`, which is
                the default. Another budget needs no compilation.

        Returns:
            "eval/NAME" for each number of the task; "eval/examples"; "eval/NOUN_per_second", NOUN
            the task's name for examples, without the first call and others that may compile; and
            "eval/skipped", this host's unreadable files met so far (`data.on_error`). For a
            model with an equilibrium also "eval/nfe", evaluations of the cell for a batch, or for
            an example with continuous batching; "eval/steps", solver steps to a sample's best
            iterate; "eval/rel_residual" (median), "eval/rel_residual_p90", "_p99" and "_max"; and
            "eval/unconverged", the share that did not reach `tol`.
        """
        limit = step_budget or self._config.solver.forward.max_steps
        budget = devices.for_each_device(np.int32(limit))
        sums, rows, counts, seconds, timed = {}, [], [], [], []
        with Prefetcher(self._loader, devices.to_devices) as batches:
            results = self._steps(
                replicated_variables,
                self._initial_carry(),
                (batch for batch, _ in batches),
                budget,
                len(self._loader),
            )
            clock = time.perf_counter()
            for result in results:
                for name, value in result.sums.items():
                    sums[name] = sums.get(name, 0) + value.astype(np.float64)
                counts.append(float(result.sums["count"]))
                rows.append(result.rows)
                timed.append(bool(timed) and not result.first)
                seconds.append(time.perf_counter() - clock)
                clock = time.perf_counter()
        local = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        samples = dict(hosts.gather(local))
        keep = samples.pop("mask") > 0
        samples = {name: value[keep] for name, value in samples.items()}
        timed = np.array(timed) if any(timed) else slice(None)
        rate = np.sum(np.array(counts)[timed]) / np.sum(np.array(seconds)[timed])
        return {
            **{f"eval/{name}": float(value) for name, value in self._task.finalize(sums).items()},
            "eval/examples": int(sums["count"]),
            **_describe_solves(samples),
            f"eval/{self._task.example_noun}_per_second": float(rate),
            "eval/skipped": len(self._loader.skipped),
        }

    def spectral_radius(self, replicated_variables) -> dict[str, float]:
        """Spectral radius of the cell's Jacobian at the equilibria of one batch.

        It is the first batch, or a later one if batches carry something to the next.

        Returns:
            "eval/spectral_radius" and "eval/spectral_radius_max", mean and largest over the
            samples of the power iteration's growth per step, and "eval/spectral_radius_residual",
            the mean of its own residual. That is near 0 if one real eigenvalue dominates, and not
            for a complex pair. See `mdeq_jax.implicit.spectral_radius`.
        """
        carry, batch = self._some_batch(replicated_variables)
        rows = self._radius(replicated_variables, carry, batch)
        rows = hosts.gather(jax.tree.map(np.ravel, devices.fetch(rows)))
        keep = rows["mask"] > 0
        return {
            "eval/spectral_radius": float(rows["growth"][keep].mean()),
            "eval/spectral_radius_max": float(rows["growth"][keep].max()),
            "eval/spectral_radius_residual": float(rows["residual"][keep].mean()),
        }

    def _some_batch(self, replicated_variables) -> tuple[PyTree, dict]:
        """The carry that a batch finds, and the batch."""
        carry, batches = self._initial_carry(), map(devices.to_devices, self._loader)
        batch = next(batches)
        if jax.tree.leaves(carry):
            budget = devices.for_each_device(np.int32(self._config.solver.forward.max_steps))
            for following in islice(batches, BATCHES_BEFORE):
                *_, carry = self._steps.ordinary(replicated_variables, carry, batch, budget)
                batch = following
        return carry, batch


def _describe_solves(samples: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of the solves of all examples; none for a model without an equilibrium."""
    if "rel_residual" not in samples:
        return {}
    residual = samples["rel_residual"]
    return {
        "eval/nfe": float(samples["nfe"].mean()),
        "eval/steps": float(samples["steps"].mean()),
        "eval/rel_residual": float(np.median(residual)),
        "eval/rel_residual_p90": float(np.quantile(residual, 0.9)),
        "eval/rel_residual_p99": float(np.quantile(residual, 0.99)),
        "eval/rel_residual_max": float(np.max(residual)),
        "eval/unconverged": float(np.mean(samples["status"] != Status.CONVERGED)),
    }
