"""Draws the evaluations of several runs in one figure.

python -m mdeq_jax.viz.compare --metric=perplexity --output=curves.png runs/deq runs/explicit
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mdeq_jax.engine.writers import read_metrics


def read_curve(workdir: str | Path, metric: str) -> tuple[list[float], list[float]]:
    """Epochs of the evaluations of a run, and what they measured.

    Args:
        workdir: work directory with `metrics.jsonl`.
        metric: name without "eval/".

    Raises:
        FileNotFoundError: there is no `metrics.jsonl`.
        ValueError: no line has the metric; lists those that there are.
    """
    lines = read_metrics(workdir)
    found = [line for line in lines if f"eval/{metric}" in line]
    if not found:
        names = sorted({name[5:] for line in lines for name in line if name.startswith("eval/")})
        raise ValueError(
            f"{workdir}/metrics.jsonl has no evaluation with {metric!r}, only with {names}."
        )
    return [line["epoch"] for line in found], [line[f"eval/{metric}"] for line in found]


def plot_runs(path: Path, workdirs: Sequence[str | Path], metric: str) -> None:
    """Draws a metric of runs against the epochs.

    Args:
        path: PNG file to write.
        workdirs: of the runs, which are named after them.
        metric: name without "eval/".
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for workdir in workdirs:
        axis.plot(*read_curve(workdir, metric), marker="o", label=Path(workdir).name)
    axis.set_xlabel("epoch")
    axis.set_ylabel(metric.replace("_", " "))
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Writes the figure."""
    parser = argparse.ArgumentParser(description="Draws a metric of several runs.")
    parser.add_argument("workdirs", nargs="+", help="work directories")
    parser.add_argument("--metric", required=True, help='as in metrics.jsonl, without "eval/"')
    parser.add_argument("--output", default="curves.png", help="PNG file to write")
    values = parser.parse_args(arguments)
    try:
        plot_runs(Path(values.output), values.workdirs, values.metric)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"Wrote {values.output}.")


if __name__ == "__main__":
    main(sys.argv[1:])
