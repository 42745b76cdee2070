"""Evaluations by number of forward solver steps: what fewer steps cost."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.models import family_of
from mdeq_jax.tasks import Task
from mdeq_jax.viz.sweep import plot_sweep


def sweep_config(config: ConfigDict, numbers: Sequence[int]) -> ConfigDict:
    """`config` with room in the forward solver for the largest number of steps.

    Args:
        config: the whole config.
        numbers: ascending.

    Raises:
        ValueError: a number below 1, or a model that does not solve for an equilibrium.
    """
    if numbers[0] < 1:
        raise ValueError(f"sweep_steps must be at least 1; got {numbers[0]}.")
    if not family_of(config).has_equilibrium:
        raise ValueError(
            f"sweep_steps has no effect on model.name={config.model.name!r}, which has no "
            "equilibrium to solve for: leave it out."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps = numbers[-1]
    return config


def sweep(
    evaluate: Callable[[int], dict], numbers: Iterable[int], report: Callable[[int, dict], None]
) -> dict[int, dict]:
    """The metrics of an evaluation with each number of steps.

    Args:
        evaluate: number of steps to metrics.
        numbers: of forward solver steps.
        report: called with each number and its metrics as soon as they are there.
    """
    results = {}
    for number in numbers:
        results[number] = evaluate(number)
        report(number, results[number])
    return results


def plot(path: Path, results: dict[int, dict], task: Task, title: str) -> None:
    """Draws the primary metric and the residuals of a sweep."""
    metric, rows = task.primary_metric, results.values()
    plot_sweep(
        path,
        list(results),
        [metric.scale * row[f"eval/{metric.name}"] for row in rows],
        [row["eval/rel_residual"] for row in rows],
        [row["eval/rel_residual_p90"] for row in rows],
        score_name=metric.axis_name,
        title=title,
    )
