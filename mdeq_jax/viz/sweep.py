"""Accuracy and residual against the number of solver steps, as a picture."""

from pathlib import Path

from matplotlib.figure import Figure


def plot_sweep(path: Path, sweep: dict[int, dict], headline: str, label: str, title: str) -> None:
    """Draws the headline figure and the median residual of evaluations with few to many steps.

    Args:
        path: PNG file to write.
        sweep: number of forward solver steps -> figures of an evaluation.
        headline: name of the figure, e.g. "top5_accuracy".
        label: the same to read.
        title: of the whole figure.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{title}: what fewer solver steps cost")
    left, right = figure.subplots(1, 2)
    steps = list(sweep)
    left.plot(steps, [100 * sweep[n][f"eval/{headline}"] for n in steps], marker="o")
    left.set_ylabel(f"{label} (%)")
    right.plot(steps, [sweep[n]["eval/rel_residual"] for n in steps], marker="o", label="median")
    right.plot(steps, [sweep[n]["eval/rel_residual_p90"] for n in steps], marker=".", label="90 %")
    right.set_yscale("log")
    right.set_ylabel("relative residual  |f(z) − z| / |f(z)|")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("most forward solver steps")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
