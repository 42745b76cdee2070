"""The loop over training steps, and what happens every so many of them."""

import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mdeq_jax.data import Prefetcher, TrainLoader
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.engine.report import (
    describe_evaluation,
    describe_training,
    fetch,
    summarize_steps,
)
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.engine.state import TrainState
from mdeq_jax.engine.step import Report
from mdeq_jax.engine.train_program import TrainProgram
from mdeq_jax.engine.writers import MetricsWriter, has_evaluation
from mdeq_jax.runtime import devices, hosts
from mdeq_jax.runtime.interrupt import Interrupted, InterruptFlag
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree


class TrainingDiverged(FloatingPointError):
    """Too many updates in a row were skipped because their loss or gradient was not finite."""


class _Window:
    """Reports of the steps since the last line of the log, and how long they took."""

    def __init__(self, batches: Prefetcher):
        self.reports, self._batches = [], batches
        self._clock, self._waited = time.perf_counter(), batches.waited_s

    def metrics(self, task: Task) -> dict[str, float]:
        seconds = time.perf_counter() - self._clock
        examples = sum(float(report.sums["count"]) for report in self.reports)
        return {
            **summarize_steps(self.reports, task),
            f"{task.example_noun}_per_second": examples / seconds,
            "data_wait_share": (self._batches.waited_s - self._waited) / seconds,
        }


class _Due(NamedTuple):
    """What a step ends with."""

    logs: bool
    evaluates: bool
    saves: bool


class TrainingRun:
    """Trains from a state to the last step; logs, evaluates and saves on the way."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        num_steps: int,
        loader: TrainLoader,
        task: Task,
        program: TrainProgram,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        best: Checkpoints,
    ):
        """Prepares the run.

        Args:
            config: the whole config.
            workdir: for the metrics.
            num_steps: of the whole training.
            loader: at the position of the state that `train` is given.
            task: of `build_task`.
            program: takes the steps.
            evaluator: of the evaluation split.
            checkpoints: the newest ones.
            best: the best one by the task's primary metric.
        """
        self._config, self._workdir, self._num_steps = config, workdir, num_steps
        self._loader, self._task, self._evaluator = loader, task, evaluator
        self._checkpoints, self._best, self._program = checkpoints, best, program
        self._rate = learning_rate(config.train, num_steps)
        self._eval_every = self._every(config.eval.every_epochs)
        self._save_every = self._every(config.checkpoint.every_epochs)

    def _every(self, epochs: float | None) -> int:
        """Steps in this many epochs, at least one; None: more than there are."""
        if epochs is None:
            return self._num_steps + 1
        return max(1, round(epochs * self._loader.steps_per_epoch))

    def train(
        self, state: TrainState, carry: PyTree, flag: InterruptFlag
    ) -> tuple[TrainState, dict | None]:
        """Trains from `state` to the end; returns the last state and metrics.

        The metrics are None if there is no step left.

        Args:
            state: on the host.
            carry: what the batch before has left, this host's rows.
            flag: of an interrupt.

        Raises:
            Interrupted: the flag was raised; a checkpoint has been written.
            TrainingDiverged: too many updates in a row were not finite.
            CheckpointError: a checkpoint could not be written.
        """
        start = int(state.step)
        # A kill may come between the checkpoint of a step and its evaluation.
        unevaluated = self._evaluates(start) and not has_evaluation(self._workdir, start)
        if start >= self._num_steps and not unevaluated:
            return state, None
        self._state, self._metrics = devices.replicate(state), None
        self._carry = devices.split(carry)
        self._score = self._best.best_score()
        self._pending, self._healthy, self._save_due = [], True, False
        anyone = devices.Agreement()
        tensorboard = self._config.log.tensorboard
        writer = MetricsWriter(self._workdir, after_step=start, tensorboard=tensorboard)
        prefetcher = Prefetcher(self._loader, devices.to_devices)
        with self._bar(start) as bar, writer, closing(self._loader), prefetcher as batches:
            self._window = _Window(batches)
            if unevaluated:
                self._evaluate(writer, start, self._position(start))
                self._window = _Window(batches)
            for step in range(start + 1, self._num_steps + 1):
                batch, data_state = next(batches)
                self._take_step(step, batch)
                stop = anyone(flag.received is not None)
                due = self._due(step, stop)
                self._collect(0 if any(due) else 1, bar)
                bar.update()
                self._save_due |= due.saves
                if self._healthy or stop:
                    self._save_if_due(data_state)
                if stop and step < self._num_steps:
                    self._checkpoints.wait()
                    raise Interrupted(step, self._checkpoints.path, flag.received)
                if due.evaluates:
                    if self._evaluate(writer, step, self._step_metrics(step)):
                        self._save_if_due(data_state)
                elif due.logs:
                    self._log_steps(writer, step)
                if due.evaluates or due.logs:
                    self._window = _Window(batches)
        if self._save_due:
            hosts.log(
                f"Warning: the last step was skipped and the evaluation's loss is not finite, so "
                f"no checkpoint of it is written; {self._kept()}."
            )
        return devices.unreplicate(self._state), self._metrics

    def _save_if_due(self, data_state: dict | None) -> None:
        """Saves what is due. A skipped step may be due to the weights, and puts it off."""
        if self._save_due:
            carry = hosts.gather(devices.join(self._carry))
            self._checkpoints.save(devices.unreplicate(self._state), data_state or {}, carry)
            self._save_due = False

    def _kept(self) -> str:
        newest = self._checkpoints.latest_step()
        kept = "no checkpoint" if newest is None else f"the checkpoint of step {newest}"
        return f"{self._checkpoints.path} holds {kept}"

    def _bar(self, start: int) -> tqdm:
        return tqdm(
            total=self._num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=None if hosts.is_primary() else True,  # None: unless it is a terminal
        )

    def _due(self, step: int, stop: bool) -> _Due:
        last = step == self._num_steps
        return _Due(
            logs=step % self._config.log.every_steps == 0,
            evaluates=self._evaluates(step),
            saves=step % self._save_every == 0 or last or stop,
        )

    def _evaluates(self, step: int) -> bool:
        """Whether the state after a step is evaluated; that before the first one is not."""
        return step > 0 and (step % self._eval_every == 0 or step == self._num_steps)

    def _take_step(self, step: int, batch: dict) -> None:
        """Starts a step on the devices."""
        pretraining = step <= self._config.train.pretrain_steps
        self._state, self._carry, report = self._program(
            self._state, self._carry, batch, pretraining
        )
        self._pending.append(report)

    def _collect(self, keep: int, bar: tqdm) -> None:
        """Fetches the reports of all steps but the last `keep`.

        The host is at most one step ahead of the devices. So the bar, an interrupt and a run that
        diverges are timely.
        """
        while len(self._pending) > keep:
            report = fetch(self._pending.pop(0))
            self._check(report)
            self._window.reports.append(report)
            self._healthy = report.scalars["skipped"] == 0
            bar.set_postfix_str(f"loss {report.scalars['loss']:.4f}", refresh=False)

    def _check(self, report: Report) -> None:
        limit, in_a_row = self._config.train.max_skipped_updates, report.scalars["skipped_in_a_row"]
        if in_a_row >= limit:
            self._checkpoints.wait()
            raise TrainingDiverged(
                f"The loss or its gradient was not finite in {int(in_a_row)} steps in a row "
                f"(train.max_skipped_updates={limit}). The weights are those before, and "
                f"{self._kept()}. Try a lower train.learning_rate, "
                "train.warmup_steps, train.grad_clip=1.0, a Jacobian loss (jacobian.weight and "
                "jacobian.frequency), or precision='float32'."
            )

    def _position(self, step: int) -> dict:
        return {"step": step, "epoch": step / self._loader.steps_per_epoch}

    def _step_metrics(self, step: int) -> dict:
        metrics = self._window.metrics(self._task)
        if step <= self._config.train.pretrain_steps:
            phase = "pretraining"
        else:
            phase = "equilibrium" if "train/forward_nfe" in metrics else "training"
        return {
            **self._position(step),
            "phase": phase,
            "learning_rate": float(np.asarray(self._rate(step - 1))),
            **metrics,
        }

    def _log_steps(self, writer: MetricsWriter, step: int) -> None:
        metrics = self._step_metrics(step)
        writer.write(metrics)
        self._log(step, "train", describe_training(metrics, self._task))

    def _evaluate(self, writer: MetricsWriter, step: int, of_steps: dict) -> bool:
        """Evaluates, and keeps the state if it is the best so far; whether the loss is finite.

        Args:
            writer: of the metrics.
            step: that the state is of.
            of_steps: metrics of the steps before it, or `_position` alone.
        """
        variables = self._state.eval_variables
        metrics = {**of_steps, **self._evaluator(variables)}
        epochs = self._config.eval.spectral_radius_every_epochs
        if epochs is not None and (step % self._every(epochs) == 0 or step == self._num_steps):
            metrics |= self._evaluator.spectral_radius(variables)
        metrics["train/skipped"] = len(self._loader.skipped)
        writer.write(metrics)
        if "train/loss" in metrics:
            self._log(step, "train", describe_training(metrics, self._task))
        self._log(step, "eval ", describe_evaluation(metrics, self._task))
        self._metrics = metrics
        metric = self._task.primary_metric
        score = metrics[f"eval/{metric.name}"]
        finite = bool(np.isfinite(metrics["eval/loss"]))
        if finite and metric.is_better(score, self._score):
            self._score = score
            self._best.save_scored(devices.unreplicate(self._state), score)
        return finite

    def _log(self, step: int, kind: str, text: str) -> None:
        hosts.log(f"{kind} {step:6,}/{self._num_steps:,}  {text}")
