"""The training run: `train_and_evaluate(config, workdir)`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset, TrainLoader
from mdeq_jax.diagnostics import convergence
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.checkpoint_folder import BEST, NEWEST
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.engine.prepare import prepare
from mdeq_jax.engine.report import describe_evaluation
from mdeq_jax.engine.run import TrainingRun
from mdeq_jax.engine.state import InitProgram, TrainState, build_optimizer
from mdeq_jax.engine.train_program import TrainProgram
from mdeq_jax.engine.validate import check_evaluation, check_training
from mdeq_jax.engine.warm_start import start_from_checkpoint
from mdeq_jax.engine.workdir import (
    changed_settings,
    check_architecture,
    check_resumable,
    check_writable,
    has_checkpoints,
    with_saved_fields,
    write_config,
)
from mdeq_jax.models import build_model, family_of
from mdeq_jax.runtime import devices, hosts
from mdeq_jax.runtime.early_program import EarlyProgram
from mdeq_jax.runtime.hosts import log
from mdeq_jax.runtime.interrupt import InterruptFlag
from mdeq_jax.tasks import Task, TrainedModel
from mdeq_jax.tree import PyTree


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a model as described by `config`, or resumes from the newest checkpoint in `workdir`.

    Writes to `workdir`: `config.json`, `checkpoints/`, `best/`, `metrics.jsonl`, `tensorboard/`
    and, at the end, `convergence.png`. With several hosts every one of them calls it, after
    `hosts.initialize_distributed`. They share `workdir`, in which only the first one writes.

    Args:
        config: a config of `configs/`.
        workdir: work directory; made if missing.

    Returns:
        The metrics of the last evaluation.

    Raises:
        ValueError: settings that do not fit each other, the data, the devices or the checkpoints
            in `workdir`; before anything is compiled.
        OSError: `workdir` cannot be written.
        CheckpointError: a checkpoint could not be written; the older ones are intact.
        Interrupted: SIGINT or SIGTERM was received; the same call resumes from there.
        TrainingDiverged: `train.max_skipped_updates` updates in a row were not finite.
    """
    workdir = Path(workdir)
    config = with_saved_fields(workdir, config)
    check_architecture(workdir, config)
    check_training(config)
    check_evaluation(config)
    config, task, dataset = prepare(config, workdir)
    model: Any = build_model(config)
    loader = _train_loader(config, dataset)
    num_steps = round(config.train.epochs * loader.steps_per_epoch)
    if num_steps < 1:
        raise ValueError(
            f"train.epochs={config.train.epochs} of {loader.steps_per_epoch} steps each is no step "
            f"at all: it must be at least {1 / loader.steps_per_epoch:.2g}."
        )
    optimizer = build_optimizer(
        config.train, num_steps, family_of(config).shared_parameters(config)
    )
    evaluator = Evaluator(model, task, dataset, config)
    plot = None
    if config.log.convergence_plot and family_of(config).has_equilibrium:
        plot = convergence.traces_program(model, task, config)
    check_writable(workdir)

    initialise = InitProgram(model, optimizer, task, config)
    shapes = initialise.shapes()
    _announce(config, workdir, task, dataset, shapes, num_steps)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.checkpoint.keep))
        best = stack.enter_context(Checkpoints(workdir, folder=BEST, keep=1))
        flag = stack.enter_context(InterruptFlag())
        done = checkpoints.latest_step() or 0
        if done:
            check_resumable(workdir, config)
            for line in changed_settings(workdir, config):
                log(f"Changed since this run was last saved: {line}.")
            loader.set_state(checkpoints.data_state())
        program = stack.enter_context(TrainProgram(config, task, optimizer, loader))
        later = {"evaluation": evaluator.compile_job(shapes.eval_variables)}
        if plot:
            traced = (plot, model, shapes.eval_variables, task, dataset, config)
            later["convergence"] = convergence.compile_job(*traced)
        program.compile_early(shapes, done, num_steps, later)
        program.wait_until_traced()
        state = initialise()
        carry = task.initial_carry(model, config.train.batch_size)
        state, carry = _start(config, (state, carry), checkpoints, num_steps)
        write_config(workdir, config)
        if hosts.is_primary():
            dataset.save_to(workdir)
        run = TrainingRun(
            config, workdir, num_steps, loader, task, program, evaluator, checkpoints, best
        )
        state, metrics = run.train(state, hosts.own_rows(carry), flag)
    if metrics is None:  # it had ended before
        metrics = evaluator(devices.replicate(state.eval_variables))
    if hosts.is_primary():
        _finish(config, workdir, model, task, dataset, state, metrics, plot)
    hosts.wait_for_all("the end")
    return metrics


def _train_loader(config: ConfigDict, dataset: Dataset) -> TrainLoader:
    return TrainLoader(
        dataset,
        config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
    )


def _announce(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    dataset: Dataset,
    state: TrainState,
    num_steps: int,
) -> None:
    """Prints what will be trained, on what, and which settings have no effect."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    on = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    if jax.process_count() > 1:
        on += f" of {jax.process_count()} hosts"
    log(
        f"{config.name}: {count:,} parameters, {dataset.num_train:,} training and "
        f"{dataset.num_eval:,} evaluation {task.example_noun}, {num_steps:,} steps of "
        f"{config.train.batch_size} on {on}; results in {workdir}"
    )
    for line in dataset.notes:
        log(line)
    for line in unused_settings(config, training=True):
        log(f"Note: {line}")
    if config.train.pretrain_steps >= num_steps:
        log(
            f"Warning: all {num_steps:,} steps are pretraining (train.pretrain_steps="
            f"{config.train.pretrain_steps:,}); the equilibrium that is evaluated is never trained."
        )


def _start(
    config: ConfigDict,
    initial: tuple[TrainState, PyTree],
    checkpoints: Checkpoints,
    num_steps: int,
) -> tuple[TrainState, PyTree]:
    """State and carry to train from: of `workdir`, of another network, or the initial ones."""
    state, carry = initial
    newest = checkpoints.latest_step()
    if newest == 0:  # a converted network
        variables, _ = checkpoints.restore_variables(state.variables)
        log("Starting from the network in the work directory, with a fresh optimiser.")
        return state.starting_from(variables), carry
    if newest is not None:
        state = checkpoints.restore(state)
        log(f"Resuming from step {int(state.step):,} of {num_steps:,}.")
        return state, checkpoints.restore_carry(carry)
    if config.init.from_checkpoint:
        return start_from_checkpoint(state, config), carry
    return state, carry


def _finish(
    config: ConfigDict,
    workdir: Path,
    model,
    task: Task,
    dataset: Dataset,
    state: TrainState,
    metrics: dict,
    plot: EarlyProgram | None,
) -> None:
    """Prints the result, and writes the convergence plot of a model with an equilibrium."""
    log(f"Done: {describe_evaluation(metrics, task)}")
    written = ["metrics.jsonl"]
    if plot:
        score = metrics[f"eval/{task.primary_metric.name}"]
        path = workdir / "convergence.png"
        convergence.plot(path, config, model, state.eval_variables, task, dataset, score, plot)
        written.append("convergence.png")
    if has_checkpoints(workdir):
        written.append(f"{NEWEST}/")
    *others, last = written
    log(f"Wrote {workdir}/{', '.join(others)}{' and ' if others else ''}{last}.")
    trained = TrainedModel(config, model, state.eval_variables, int(state.step))
    for line in task.closing_lines(trained, workdir):
        log(line)
