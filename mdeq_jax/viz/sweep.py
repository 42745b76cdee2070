"""Metric and residual against the number of solver steps, as a figure."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_sweep(
    path: Path,
    steps: Sequence[int],
    scores: Sequence[float],
    residuals: Sequence[float],
    residuals_p90: Sequence[float],
    *,
    score_name: str,
    title: str,
) -> None:
    """Draws the metric and the residuals of evaluations with few to many solver steps.

    Args:
        path: PNG file to write.
        steps: number of forward solver steps of each evaluation.
        scores: its metric, as it is drawn.
        residuals: its median relative residual.
        residuals_p90: the 90 % quantile of its relative residuals.
        score_name: names the metric on its axis.
        title: of the whole figure.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{title}: what fewer solver steps cost")
    left, right = figure.subplots(1, 2)
    left.plot(steps, scores, marker="o")
    left.set_ylabel(score_name)
    right.plot(steps, residuals, marker="o", label="median")
    right.plot(steps, residuals_p90, marker=".", label="90 %")
    right.set_yscale("log")
    right.set_ylabel("relative residual  |f(z) − z| / |f(z)|")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("most forward solver steps")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
