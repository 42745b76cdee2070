"""The training run: `train_and_evaluate(config, workdir)`."""

import time
from contextlib import ExitStack, closing
from pathlib import Path

import jax
from tqdm import tqdm

from mdeq_jax.data import Prefetcher, TrainLoader, load_dataset
from mdeq_jax.diagnostics import convergence
from mdeq_jax.engine.checkpoint import BEST, Checkpoints
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.engine.evaluation import Evaluator
from mdeq_jax.engine.report import describe_evaluation, describe_training, fetch, summarize
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.engine.state import build_optimizer, init_state
from mdeq_jax.engine.step import make_train_step, training_config
from mdeq_jax.engine.validate import check_training
from mdeq_jax.engine.warm_start import start_from_checkpoint
from mdeq_jax.engine.workdir import (
    check_architecture,
    check_resumable,
    check_writable,
    write_config,
)
from mdeq_jax.engine.writers import MetricsWriter
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices, hosts
from mdeq_jax.runtime.interrupt import Interrupted, InterruptFlag
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.validate import check_data


class TrainingDiverged(FloatingPointError):
    """Too many updates in a row were left out, as their loss or gradient was not finite."""


def train_and_evaluate(config, workdir: str | Path) -> dict:
    """Trains as `config` says, or goes on from the newest checkpoint in `workdir`.

    Writes to `workdir`: `config.json`, `checkpoints/`, `best/`, `metrics.jsonl`, `tensorboard/`
    and, at the end, `convergence.png`. With several hosts every one of them calls it, after
    `hosts.join`; they share `workdir`, in which the first one writes.

    Args:
        config: a config of `configs/`.
        workdir: work directory; made if missing.

    Returns:
        The figures of the last evaluation.

    Raises:
        ValueError: settings that do not fit each other, the data, the devices or the checkpoints
            in `workdir`; before anything is compiled.
        OSError: `workdir` cannot be written.
        CheckpointError: a checkpoint could not be written; the older ones are intact.
        Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
        TrainingDiverged: `train.max_skipped_updates` updates in a row were not finite.
    """
    workdir = Path(workdir)
    check_architecture(workdir, config)
    check_training(config)
    model, task = build_model(config), build_task(config)
    dataset = load_dataset(config.data)
    check_data(config, dataset)
    loader = TrainLoader(
        dataset,
        config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
    )
    num_steps = round(config.train.epochs * loader.steps_per_epoch)
    optimizer = build_optimizer(config.train, num_steps)
    evaluator = Evaluator(model, task, dataset, config)
    check_writable(workdir)

    state = init_state(model, optimizer, config)
    _announce(config, workdir, dataset, state, num_steps)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.checkpoint.keep))
        best = stack.enter_context(Checkpoints(workdir, folder=BEST, keep=1))
        flag = stack.enter_context(InterruptFlag())
        state = _start(config, workdir, state, loader, checkpoints, num_steps)
        write_config(workdir, config)
        run = _Run(config, workdir, num_steps, loader, task, optimizer, evaluator)
        state, metrics = run.train(state, checkpoints, best, flag)
    if metrics is None:  # it had ended before
        metrics = evaluator(devices.replicate(state.eval_variables))
    if hosts.is_main():
        print(f"Done: {describe_evaluation(metrics, task.headline)}")
        written = "metrics.jsonl and checkpoints/"
        if config.log.convergence_plot:
            score = metrics[f"eval/{task.headline}"]
            path = workdir / "convergence.png"
            convergence.plot(path, config, model, state.eval_variables, task, dataset, score)
            written = "metrics.jsonl, convergence.png and checkpoints/"
        print(f"Wrote {workdir}/{written}.")
    hosts.wait_for_all("the end")
    return metrics


def _announce(config, workdir, dataset, state, num_steps) -> None:
    if not hosts.is_main():
        return
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    on = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    if jax.process_count() > 1:
        on += f" of {jax.process_count()} hosts"
    print(
        f"{config.name}: {count:,} parameters, {dataset.num_train:,} training and "
        f"{dataset.num_eval:,} evaluation images, {num_steps:,} steps of {config.train.batch_size} "
        f"on {on}; results in {workdir}"
    )
    for line in unused_settings(config, training=True):
        print(f"Note: {line}")
    if config.train.pretrain_steps >= num_steps:
        print(
            f"Warning: all {num_steps:,} steps are pretraining (train.pretrain_steps="
            f"{config.train.pretrain_steps:,}); the equilibrium that is evaluated is never trained."
        )


def _start(config, workdir, state, loader, checkpoints, num_steps):
    """The state to train from: of `workdir`, of another network, or fresh."""
    newest = checkpoints.latest_step()
    if newest == 0:  # a converted network
        variables, _ = checkpoints.restore_variables(state.variables)
        message = "Starting from the network in the work directory, with a fresh optimiser."
        state = state.starting_from(variables)
    elif newest is not None:
        check_resumable(workdir, config)
        state, data_state = checkpoints.restore(state)
        loader.set_state(data_state)
        message = f"Going on from step {int(state.step):,} of {num_steps:,}."
    elif config.init.from_checkpoint:
        return start_from_checkpoint(state, config)
    else:
        return state
    if hosts.is_main():
        print(message)
    return state


class _Window:
    """Reports of the steps since some moment, and how long they took."""

    def __init__(self, batches: Prefetcher):
        self.reports, self._batches = [], batches
        self._clock, self._waited = time.perf_counter(), batches.waited_s

    def figures(self, task, batch_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._clock
        return {
            **summarize(self.reports, task),
            "images_per_second": len(self.reports) * batch_size / seconds,
            "data_wait_share": (self._batches.waited_s - self._waited) / seconds,
        }


class _Run:
    """The loop over steps, and what happens every so many of them."""

    def __init__(self, config, workdir, num_steps, loader, task, optimizer, evaluator):
        self._config, self._workdir, self._num_steps = config, workdir, num_steps
        self._loader, self._task, self._evaluator = loader, task, evaluator
        self._train_step = devices.pmap(
            make_train_step(
                build_model(training_config(config)),
                optimizer,
                task,
                config,
                loader.steps_per_epoch,
            ),
            static_argnums=(2,),
            donate_argnums=(0,),
        )
        self._rate = learning_rate(config.train, num_steps)

    def _every(self, epochs: float | None) -> int:
        """Steps in this many epochs, at least one; None: more than there are."""
        if epochs is None:
            return self._num_steps + 1
        return max(1, round(epochs * self._loader.steps_per_epoch))

    def train(self, state, checkpoints, best, flag) -> tuple:
        """Trains from `state` to the end; the last state and figures (None: nothing to do)."""
        config, num_steps, start = self._config, self._num_steps, int(state.step)
        if start >= num_steps:
            return state, None
        eval_every = self._every(config.eval.every_epochs)
        save_every = self._every(config.checkpoint.every_epochs)
        replicated, metrics, score = devices.replicate(state), None, best.best_score()
        anyone, pending = devices.Agreement(), []
        bar = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not hosts.is_main(),
        )
        writer = MetricsWriter(self._workdir, after_step=start, tensorboard=config.log.tensorboard)
        prefetcher = Prefetcher(self._loader, devices.place)
        with bar, writer, closing(self._loader), prefetcher as batches:
            since_log, since_eval, healthy = _Window(batches), _Window(batches), True
            for step in range(start + 1, num_steps + 1):
                batch, data_state = next(batches)
                plain = step <= config.train.pretrain_steps
                replicated, report = self._train_step(replicated, batch, plain)
                pending.append(report)
                # At most one step ahead of the devices, so that the bar, an interrupt and a run
                # that diverges are timely.
                last, stop = step == num_steps, anyone(flag.received is not None)
                logs, evaluates = step % config.log.every_steps == 0, step % eval_every == 0 or last
                saves = step % save_every == 0 or last or stop
                while len(pending) > (0 if logs or evaluates or saves else 1):
                    fetched = fetch(pending.pop(0))
                    self._check(fetched, checkpoints)
                    since_log.reports.append(fetched)
                    since_eval.reports.append(fetched)
                    healthy = fetched.scalars["skipped"] == 0
                    bar.set_postfix_str(f"loss {fetched.scalars['loss']:.4f}", refresh=False)
                bar.update()
                if saves and (healthy or stop):
                    checkpoints.save(devices.unreplicate(replicated), data_state)
                if stop and not last:
                    checkpoints.wait()
                    raise Interrupted(step, checkpoints.path, flag.received)
                if logs and not evaluates:
                    self._log(writer, step, plain, since_log)
                    since_log = _Window(batches)
                if evaluates:
                    metrics = self._evaluate(writer, step, plain, since_eval, replicated)
                    if healthy and metrics[f"eval/{self._task.headline}"] > score:
                        score = metrics[f"eval/{self._task.headline}"]
                        best.save_scored(devices.unreplicate(replicated), score)
                    since_log, since_eval = _Window(batches), _Window(batches)
        return devices.unreplicate(replicated), metrics

    def _check(self, report, checkpoints) -> None:
        limit, in_a_row = self._config.train.max_skipped_updates, report.scalars["skipped_in_a_row"]
        if in_a_row >= limit:
            checkpoints.wait()
            newest = checkpoints.latest_step()
            kept = "no checkpoint" if newest is None else f"the checkpoint of step {newest}"
            raise TrainingDiverged(
                f"The loss or its gradient was not finite in {int(in_a_row)} steps in a row "
                f"(train.max_skipped_updates={limit}); the weights are those before, and "
                f"{checkpoints.path} holds {kept}. Try a lower train.learning_rate, "
                "train.warmup_steps, train.grad_clip=1.0, a Jacobian loss (jacobian.weight and "
                "jacobian.frequency), or precision='float32'."
            )

    def _progress(self, step: int, plain: bool) -> dict:
        return {
            "step": step,
            "epoch": step / self._loader.steps_per_epoch,
            "phase": "pretraining" if plain else "equilibrium",
            "learning_rate": float(self._rate(step - 1)),
        }

    def _log(self, writer, step, plain, window) -> None:
        figures = window.figures(self._task, self._config.train.batch_size)
        metrics = {**self._progress(step, plain), **figures}
        writer.write(metrics)
        self._say(step, "train", describe_training(metrics))

    def _evaluate(self, writer, step, plain, window, replicated) -> dict:
        figures = window.figures(self._task, self._config.train.batch_size)
        variables = replicated.eval_variables
        metrics = {**self._progress(step, plain), **figures, **self._evaluator(variables)}
        every = self._every(self._config.eval.spectral_radius_every_epochs)
        asked = self._config.eval.spectral_radius_every_epochs is not None
        if asked and (step % every == 0 or step == self._num_steps):
            metrics |= self._evaluator.spectral_radius(variables)
        metrics["train/skipped"] = sum(self._loader.skipped.values())
        writer.write(metrics)
        self._say(step, "train", describe_training(metrics))
        self._say(step, "eval ", describe_evaluation(metrics, self._task.headline))
        return metrics

    def _say(self, step: int, kind: str, text: str) -> None:
        if hosts.is_main():
            tqdm.write(f"{kind} {step:6,}/{self._num_steps:,}  {text}")
