"""Evaluating and predicting with a checkpoint of a work directory."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.diagnostics import sweep
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.engine.prepare import prepare
from mdeq_jax.engine.report import describe_evaluation
from mdeq_jax.engine.validate import check_evaluation
from mdeq_jax.engine.variables import load_variables
from mdeq_jax.engine.workdir import with_saved_fields
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.runtime.hosts import is_primary, log
from mdeq_jax.tasks import GenerationRequest, TrainedModel, build_task


def evaluate(
    config: ConfigDict,
    workdir: str | Path,
    *,
    checkpoint: str = "latest",
    sweep_steps: Sequence[int] = (),
) -> dict:
    """Evaluates a checkpoint of `workdir` with the solver settings of `config`.

    Args:
        config: a config of the same architecture; other settings may differ from training's.
        workdir: work directory of `train_and_evaluate` or of a converted file.
        checkpoint: "latest", "best", or a step.
        sweep_steps: numbers of forward solver steps to evaluate with, instead of
            `solver.forward.max_steps`; they share one compiled program. Writes
            `workdir/sweep.png`.

    Returns:
        The metrics of `Evaluator`, "step", and those of the spectral radius if
        `eval.spectral_radius_every_epochs` is set. With `sweep_steps` the metrics are those of the
        largest number, and all of them are under "sweep", by number of steps.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not fit each other, the data or the checkpoint.
    """
    workdir, numbers = Path(workdir), sorted(set(sweep_steps))
    if numbers:
        config = sweep.sweep_config(config, numbers)
    check_evaluation(config)
    config = with_saved_fields(workdir, config)
    model = build_model(config)
    variables, step = load_variables(config, workdir, checkpoint)
    config, task, dataset = prepare(config, workdir)
    for line in dataset.notes:
        log(line)
    for line in unused_settings(config, training=False):
        log(f"Note: {line}")
    evaluator, replicated = Evaluator(model, task, dataset, config), devices.replicate(variables)
    if not numbers:
        metrics = {"step": step, **evaluator(replicated)}
        if config.eval.spectral_radius_every_epochs is not None:
            metrics |= evaluator.spectral_radius(replicated)
        log(f"{workdir}, step {step:,}: {describe_evaluation(metrics, task)}")
        return metrics
    log(f"{workdir}, step {step:,}, by forward solver steps:")
    results = sweep.sweep(
        lambda number: evaluator(replicated, number),
        numbers,
        lambda number, metrics: log(f"{number:5}  {describe_evaluation(metrics, task)}"),
    )
    if is_primary():
        path = workdir / "sweep.png"
        sweep.plot(path, results, task, f"{config.name}, step {step:,}")
        log(f"Wrote {path}.")
    return {"step": step, **results[numbers[-1]], "sweep": results}


def predict(
    config: ConfigDict, workdir: str | Path, source: str | Path, *, checkpoint: str = "latest"
) -> str:
    """Predicts on new examples, and writes the results into `workdir`.

    Args:
        config: a config of the same architecture.
        workdir: work directory of `train_and_evaluate` or of a converted file.
        source: where the examples are; see `Task.predict` of the config's task.
        checkpoint: "latest", "best", or a step.

    Returns:
        A line that lists the written files.

    Raises:
        FileNotFoundError: there is no such checkpoint or source.
        ValueError: settings that do not fit each other or the checkpoint, or a bad example.
    """
    task, trained = build_task(config), load_trained(config, workdir, checkpoint)
    return task.predict(trained, source, Path(workdir))


def generate(
    config: ConfigDict,
    workdir: str | Path,
    request: GenerationRequest,
    *,
    checkpoint: str = "latest",
) -> str:
    """Makes new examples, and writes them into `workdir`.

    Args:
        config: a config of the same architecture.
        workdir: work directory of `train_and_evaluate`.
        request: how many, and how; see `Task.generate` of the config's task.
        checkpoint: "latest", "best", or a step.

    Returns:
        The examples, and lines on how they were made and where they were written.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not fit each other or the checkpoint, a task that makes no
            examples, or a request that cannot be met.
    """
    task, trained = build_task(config), load_trained(config, workdir, checkpoint)
    return task.generate(trained, request, Path(workdir))


def save_predictions(
    config: ConfigDict, workdir: str | Path, folder: str | Path, *, checkpoint: str = "latest"
) -> dict[str, float]:
    """Writes the predictions on the evaluation split into `folder`; returns their metrics.

    Args:
        config: a config of the network and the data set.
        workdir: work directory of `train_and_evaluate` or of a converted file.
        folder: made if missing.
        checkpoint: "latest", "best", or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no data.
        ValueError: settings that do not fit each other, the data or the checkpoint, or a task that
            has nothing to save.
    """
    task, trained = build_task(config), load_trained(config, workdir, checkpoint)
    return task.save_predictions(trained, folder)


def load_trained(config: ConfigDict, workdir: str | Path, checkpoint: str) -> TrainedModel:
    """The model of a config with the variables of a checkpoint; errors as `load_variables`'s."""
    config = with_saved_fields(Path(workdir), config)
    variables, step = load_variables(config, workdir, checkpoint)
    return TrainedModel(config, build_model(config), variables, step)
