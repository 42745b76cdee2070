"""The three networks that the original was timed on, on this machine's GPU, beside its figures.

    python -m benchmarks.gpu --output=runs/gpu

Trains and infers with each, in float32 (convolutions in TF32, JAX's default), in float32 with
Broyden's history in bfloat16, and all in bfloat16; each in a process of its own, so that its peak
memory is its own. A run whose file is in `--output` is not made again: after an interruption the
same command goes on. `--only=cifar10_tiny` makes the runs whose names contain this. Every solve
takes all of its steps, as the original's did for its figures.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging

from benchmarks.report import markdown


class Target(NamedTuple):
    """One network: the original's figures (PyTorch, one H200, TF32) and what is aimed at.

    Attributes:
        batch: images a step.
        steps: forward and backward solver steps.
        train, train_goal: images a second, training.
        infer, infer_goal: images a second, inference.
        memory: GB of a training step; the goal is half of it.
    """

    batch: int
    steps: tuple[int, int]
    train: float
    train_goal: float
    infer: float
    infer_goal: float
    memory: float


TARGETS = {
    "cifar10_tiny": Target(64, (18, 20), 514, 4000, 1109, 9000, 0.7),
    "cifar10_large": Target(96, (18, 20), 343, 2200, 646, 5500, 3.1),
    "imagenet_small": Target(128, (26, 27), 160, 800, 387, 2000, 10.3),
}
_HISTORY = [f"--config.solver.{way}.history_dtype=bfloat16" for way in ("forward", "backward")]
VARIANTS = {
    "float32": ["--precision=float32"],
    "float32_history_bfloat16": ["--precision=float32", *_HISTORY],
    "bfloat16": ["--precision=bfloat16", *_HISTORY],
}
MODES = {"training": "benchmarks.train_step", "inference": "benchmarks.inference"}


def command(config: str, variant: str, mode: str, path: Path, *, repeats: int) -> list[str]:
    """The command line of one run."""
    target = TARGETS[config]
    forward, backward = target.steps
    arguments = [
        f"--config=configs/{config}.py",
        f"--batch={target.batch}",
        *VARIANTS[variant],
        f"--forward_steps={forward}",
        f"--repeats={repeats}",
        f"--json={path}",
    ]
    if mode == "training":
        arguments.append(f"--backward_steps={backward}")
    else:
        arguments.append(f"--step_budgets={forward}")
    return [sys.executable, "-m", MODES[mode], *arguments]


def table(reports: dict[tuple[str, str, str], dict]) -> str:
    """All runs beside the original's figures.

    Args:
        reports: (config, variant, mode) -> what the run wrote.
    """
    rows = []
    for (config, variant, mode), report in reports.items():
        target = TARGETS[config]
        training = mode == "training"
        original, goal = (
            (target.train, target.train_goal) if training else (target.infer, target.infer_goal)
        )
        rate, held = report["images_per_second"], report["memory"]
        used = (held["peak_bytes"] or held["planned_bytes"]) / 1e9
        rows.append(
            (
                f"{config}, batch {target.batch}, {mode}",
                variant.replace("_", " "),
                f"{rate:,.0f}",
                f"{original:,.0f}",
                f"{rate / original:.2f}",
                f"{goal:,.0f}",
                "yes" if rate >= goal else "no",
                f"{used:.2f}",
                f"{target.memory:.1f}" if training else "",
                f"{target.memory / 2:.2f}" if training else "",
                f"{report['compile_s']:.0f}",
            )
        )
    head = ("images a second", "precision", "here", "original", "times", "goal", "reached")
    return markdown((*head, "GB", "original", "goal", "compile, s"), rows)


def main(argv) -> None:
    """Makes the runs that are missing and prints the table."""
    del argv
    output, reports, failed = Path(_OUTPUT.value), {}, []
    output.mkdir(parents=True, exist_ok=True)
    for run in itertools.product(TARGETS, VARIANTS, MODES):
        name = "_".join(run)
        path = output / f"{name}.json"
        if _ONLY.value in name and not path.exists():
            print(f"{name} ...", flush=True)
            if subprocess.run(command(*run, path, repeats=_REPEATS.value)).returncode:
                failed.append(name)
        if path.exists():
            reports[run] = json.loads(path.read_text())
    if reports:
        print(table(reports))
    if failed:
        sys.exit(f"These failed, for the reasons told above: {', '.join(failed)}.")
    if not reports:
        sys.exit(f"--only={_ONLY.value!r} is in the name of no run, and {output} holds none.")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    _OUTPUT = flags.DEFINE_string("output", "runs/gpu", "Folder for a JSON file a run.")
    _ONLY = flags.DEFINE_string("only", "", "Make only runs whose names contain this.")
    _REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs; medians are told.")
    app.run(main)
