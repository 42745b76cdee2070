"""The training run: `train_and_evaluate(config, workdir)`."""

import math
import signal
import time
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from mdeq_jax.data import Prefetcher, TrainLoader, load_dataset
from mdeq_jax.models import build_model
from mdeq_jax.training import devices
from mdeq_jax.training.checkpoint import (
    Checkpoints,
    check_architecture,
    check_optimizer,
    write_config,
)
from mdeq_jax.training.checks import check_data, check_training
from mdeq_jax.training.evaluation import Evaluator, convergence_traces
from mdeq_jax.training.interrupt import InterruptFlag
from mdeq_jax.training.report import MetricsFile, describe, summarize
from mdeq_jax.training.schedules import learning_rate
from mdeq_jax.training.state import build_optimizer, init_state
from mdeq_jax.training.step import make_train_step, training_config
from mdeq_jax.training.tasks import build_task
from mdeq_jax.training.transfer import start_from_checkpoint
from mdeq_jax.viz.convergence import plot_convergence


class Interrupted(Exception):
    """The run was asked to stop, and did so with a checkpoint written.

    Attributes:
        signal: the signal that asked.
    """

    def __init__(self, message: str, signal: signal.Signals):
        super().__init__(message)
        self.signal = signal


def train_and_evaluate(config, workdir: str | Path) -> dict:
    """Trains as `config` says, or goes on from the newest checkpoint in `workdir`.

    Writes to `workdir`: `config.json`, `checkpoints/`, `metrics.jsonl` (one object for each
    evaluation) and, at the end, `convergence.png`.

    Args:
        config: a config of `configs/`.
        workdir: work directory; made if missing.

    Returns:
        The figures of the last evaluation.

    Raises:
        ValueError: settings that do not fit each other, the data, the devices or the checkpoints
            in `workdir`; before anything is compiled.
        Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
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

    state = init_state(model, optimizer, config.seed, config.data.image_size)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{config.name}: {count:,} parameters, {dataset.num_train:,} training and "
        f"{dataset.num_eval:,} evaluation images, {num_steps:,} steps of {config.train.batch_size} "
        f"on {jax.device_count()} {jax.devices()[0].platform} device(s); results in {workdir}"
    )
    if config.train.pretrain_steps >= num_steps:
        print(
            f"Warning: all {num_steps:,} steps are pretraining (train.pretrain_steps="
            f"{config.train.pretrain_steps:,}); the equilibrium that is evaluated is never trained."
        )
    with Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints, InterruptFlag() as flag:
        if checkpoints.latest_step() == 0:  # a converted network
            variables, _ = checkpoints.restore_variables(state.variables)
            state = state.replace(**variables)
            print("Starting from the network in the work directory, with a fresh optimiser.")
        elif checkpoints.latest_step() is not None:
            check_optimizer(workdir, config)
            state, data_state = checkpoints.restore(state)
            loader.set_state(data_state)
            print(f"Going on from step {int(state.step):,} of {num_steps:,}.")
        elif config.init.from_checkpoint:
            state = start_from_checkpoint(state, config)
        write_config(workdir, config)
        state, metrics = _train(
            config, workdir, num_steps, state, loader, task, optimizer, evaluator, checkpoints, flag
        )
    if metrics is None:  # it had ended before
        metrics = evaluator(devices.replicate(state.variables))
    print(f"Done: {describe(metrics)}")
    _plot(workdir / "convergence.png", config, model, state.variables, task, dataset, metrics)
    print(f"Wrote {workdir}/metrics.jsonl, convergence.png and checkpoints/.")
    return metrics


def evaluate(config, workdir: str | Path) -> dict:
    """Evaluates the newest checkpoint of `workdir` with the solver settings of `config`.

    Args:
        config: a config of the same architecture; other settings may differ from training's.
        workdir: work directory of `train_and_evaluate` or of a converted file.

    Returns:
        The figures, see `Evaluator`, and "step".

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: settings that do not fit each other, the data or the checkpoint.
    """
    workdir = Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{workdir} holds no checkpoints. Train first (train.py), convert a PyTorch file "
            "(convert_torch_weights.py), or point --workdir to a directory where that was done."
        )
    check_architecture(workdir, config)
    model, task = build_model(config), build_task(config)
    dataset = load_dataset(config.data)
    check_data(config, dataset)
    evaluator = Evaluator(model, task, dataset, config)
    images = jnp.zeros((1, *config.data.image_size, 3))
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    with Checkpoints(workdir) as checkpoints:
        variables, step = checkpoints.restore_variables(like)
    metrics = {"step": step, **evaluator(devices.replicate(variables))}
    print(f"{workdir}, step {step:,}: {describe(metrics)}")
    return metrics


def _train(
    config, workdir, num_steps, state, loader, task, optimizer, evaluator, checkpoints, flag
) -> tuple:
    """Trains from `state` to `num_steps`; the last state and figures (None: nothing to do)."""
    start = int(state.step)
    if start >= num_steps:
        return state, None
    model = build_model(training_config(config))
    train_step = devices.pmap(
        make_train_step(model, optimizer, task, config, loader.steps_per_epoch),
        static_argnums=(2,),
        donate_argnums=(0,),
    )
    rate = learning_rate(config.train, num_steps)
    eval_every = max(1, round(config.eval.every_epochs * loader.steps_per_epoch))
    save_every = max(1, round(config.checkpoint.every_epochs * loader.steps_per_epoch))
    replicated, reports, metrics = devices.replicate(state), [], None
    metrics_file = MetricsFile(workdir / "metrics.jsonl", after_step=start)
    bar = tqdm(total=num_steps, initial=start, unit="step", dynamic_ncols=True)
    clock, waited = time.perf_counter(), 0.0
    with bar, closing(loader), Prefetcher(loader, devices.place) as batches:
        for step in range(start + 1, num_steps + 1):
            batch, data_state = next(batches)
            plain = step <= config.train.pretrain_steps
            replicated, report = train_step(replicated, batch, plain)
            reports.append(report)
            # At most one step ahead of the devices, so that the bar and an interrupt are timely.
            jax.block_until_ready(reports[-2:][0])
            bar.update()
            last = step == num_steps
            if step % config.log.every_steps == 0:
                bar.set_postfix_str(f"loss {float(report['loss'][0]):.4f}")
            if step % save_every == 0 or last or flag.received:
                checkpoints.save(devices.unreplicate(replicated), data_state)
            if flag.received and not last:
                checkpoints.wait()
                raise Interrupted(
                    f"Stopped by {flag.received.name} at step {step}; a checkpoint is in "
                    f"{checkpoints.path}. The same command goes on from there.",
                    flag.received,
                )
            if step % eval_every == 0 or last:
                train_metrics = summarize(reports)
                seconds = time.perf_counter() - clock
                if not math.isfinite(train_metrics["train/loss"]):
                    raise FloatingPointError(
                        f"The training loss is {train_metrics['train/loss']} at step {step}. Go on "
                        f"from an older checkpoint in {checkpoints.path}, with a lower "
                        "train.learning_rate, train.grad_clip, or a Jacobian loss."
                    )
                metrics = {
                    "step": step,
                    "epoch": step / loader.steps_per_epoch,
                    "phase": "pretraining" if plain else "equilibrium",
                    **evaluator(replicated.variables),
                    **train_metrics,
                    "learning_rate": float(rate(step - 1)),
                    "images_per_second": len(reports) * config.train.batch_size / seconds,
                    "data_wait_share": (batches.waited_s - waited) / seconds,
                    "train/skipped": sum(loader.skipped.values()),
                }
                metrics_file.write(metrics)
                tqdm.write(f"step {step:6,}/{num_steps:,}  {describe(metrics)}")
                reports, clock, waited = [], time.perf_counter(), batches.waited_s
    return devices.unreplicate(replicated), metrics


def _plot(path, config, model, variables, task, dataset, metrics) -> None:
    if jax.process_index() != 0:
        return
    traces = convergence_traces(model, variables, task, dataset, config)
    ends = [np.nanmedian(trace[-1]) for trace in (traces.forward, traces.backward)]
    logging.info("Median residuals after all steps: forward %.2e, backward %.2e", *ends)
    uses_tol = config.solver.forward.stop_mode == "rel"
    exact = config.gradient.name == "ift" and config.solver.backward.stop_mode == "rel"
    plot_convergence(
        path,
        traces.forward,
        traces.backward,
        title=f"{config.name}: convergence over {dataset.num_eval:,} evaluation images "
        f"(accuracy {100 * metrics['eval/accuracy']:.2f} %)",
        forward_label=traces.forward_label,
        backward_label=traces.backward_label,
        forward_tol=config.solver.forward.tol if uses_tol else None,
        backward_tol=config.solver.backward.tol if exact else None,
    )
