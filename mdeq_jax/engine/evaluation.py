"""Evaluating what a work directory holds: `evaluate`, and its accuracy against solver steps."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from mdeq_jax.data import load_dataset
from mdeq_jax.engine.checkpoint import BEST, NEWEST, Checkpoints
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.engine.report import describe_evaluation
from mdeq_jax.engine.workdir import check_architecture
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices, hosts
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.task import display_name
from mdeq_jax.tasks.validate import check_data
from mdeq_jax.viz.sweep import plot_sweep


def evaluate(
    config, workdir: str | Path, *, checkpoint: str = "latest", sweep_steps: Sequence[int] = ()
) -> dict:
    """Evaluates a checkpoint of `workdir` with the solver settings of `config`.

    Args:
        config: a config of the same architecture; other settings may differ from training's.
        workdir: work directory of `train_and_evaluate` or of a converted file.
        checkpoint: "latest", "best", or a step.
        sweep_steps: numbers of forward solver steps to evaluate with, in the place of
            `solver.forward.max_steps`; nothing is compiled anew for them. Writes
            `workdir/sweep.png`.

    Returns:
        The figures, see `Evaluator`, and "step", and those of the spectral radius if
        `eval.spectral_radius_every_epochs` is set; with `sweep_steps` those of the largest number,
        and all of them under "sweep", by number of steps.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not fit each other, the data or the checkpoint.
    """
    workdir = Path(workdir)
    sweep_steps = sorted(set(sweep_steps))
    if sweep_steps:
        config = _with_room_for(config, sweep_steps)
    model, task = build_model(config), build_task(config)
    variables, step = load_checkpoint(config, workdir, model, checkpoint)
    dataset = load_dataset(config.data)
    check_data(config, dataset)
    for line in unused_settings(config, training=False):
        _say(f"Note: {line}")
    evaluator, replicated = Evaluator(model, task, dataset, config), devices.replicate(variables)
    if not sweep_steps:
        metrics = {"step": step, **evaluator(replicated)}
        if config.eval.spectral_radius_every_epochs is not None:
            metrics |= evaluator.spectral_radius(replicated)
        _say(f"{workdir}, step {step:,}: {describe_evaluation(metrics, task.headline)}")
        return metrics
    _say(f"{workdir}, step {step:,}, by forward solver steps:")
    sweep = {}
    for number in sweep_steps:
        sweep[number] = evaluator(replicated, number)
        _say(f"{number:5}  {describe_evaluation(sweep[number], task.headline)}")
    if hosts.is_main():
        path = workdir / "sweep.png"
        label = display_name(task.headline)
        plot_sweep(path, sweep, task.headline, label, f"{config.name}, step {step:,}")
        print(f"Wrote {path}.")
    return {"step": step, **sweep[sweep_steps[-1]], "sweep": sweep}


def load_checkpoint(config, workdir: Path, model, checkpoint: str = "latest") -> tuple[dict, int]:
    """The network of a work directory, on the host, and its step.

    Args:
        config: a config of the same architecture.
        workdir: work directory.
        model: of `build_model(config)`.
        checkpoint: "latest", "best", or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is of another architecture, or `checkpoint` is none of the above.
    """
    if not (checkpoint in ("latest", "best") or checkpoint.isdigit()):
        raise ValueError(f"checkpoint must be 'latest', 'best' or a step; got {checkpoint!r}.")
    folder = BEST if checkpoint == "best" else NEWEST
    if not (workdir / folder).is_dir():
        raise FileNotFoundError(
            f"{workdir} holds no {folder if folder == NEWEST else 'best checkpoint'}. Train first "
            "(train.py), convert a PyTorch file (convert_torch_weights.py), or point --workdir to "
            "a directory where that was done."
        )
    check_architecture(workdir, config)
    images = jnp.zeros((1, *config.data.image_size, 3))
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    with Checkpoints(workdir, folder=folder, write=False) as checkpoints:
        return checkpoints.restore_variables(
            like, int(checkpoint) if checkpoint.isdigit() else None
        )


def _with_room_for(config, sweep_steps):
    if sweep_steps[0] < 1:
        raise ValueError(f"sweep_steps must be at least 1; got {sweep_steps[0]}.")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps = sweep_steps[-1]
    return config


def _say(text: str) -> None:
    if hosts.is_main():
        print(text, flush=True)
