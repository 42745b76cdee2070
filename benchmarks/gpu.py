"""The three networks that the original was timed on, on this machine's GPU, beside its figures.

    python -m benchmarks.gpu --output=runs/gpu

Trains and infers with each, in float32 (convolutions in TF32, JAX's default), in float32 with
Broyden's history in bfloat16, and all in bfloat16; the first and the last with kernels of our own
(`config.pallas`) too. Each run has a process of its own, so that its peak memory is its own.
Training is compiled in a process before it and comes from JAX's compilation cache, in `--output`:
while XLA tries its algorithms out it takes memory that a step does not need. A run whose file is in
`--output` is not made again: after an interruption the same command goes on. `--only=cifar10_tiny`
makes the runs whose names contain this, `--only=none` prints those that are there, and
`--minutes=8` begins no run after so long. Every solve takes all of its steps, as the original's did
for its figures. One GPU is used, the first.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
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
_PALLAS = "--config.pallas=True"
VARIANTS = {
    "float32": ["--precision=float32"],
    "float32_history_bfloat16": ["--precision=float32", *_HISTORY],
    "bfloat16": ["--precision=bfloat16", *_HISTORY],
    "float32_pallas": ["--precision=float32", _PALLAS],
    "bfloat16_pallas": ["--precision=bfloat16", *_HISTORY, _PALLAS],
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
        rate, memory = report["images_per_second"], ("", "", "", "")
        if training:
            held = (report["memory"]["planned_bytes"], report["memory"]["peak_bytes"])
            told = ("" if value is None else f"{value / 1e9:.2f}" for value in held)
            memory = (*told, f"{target.memory:.1f}", f"{target.memory / 2:.2f}")
        rows.append(
            (
                f"{config}, batch {target.batch}, {mode}",
                variant.replace("_", " "),
                f"{rate:,.0f}",
                f"{original:,.0f}",
                f"{rate / original:.2f}",
                f"{goal:,.0f}",
                "ended early" if report["warning"] else "yes" if rate >= goal else "no",
                *memory,
                f"{report['compile_s']:.0f}",
            )
        )
    head = ("images a second", "precision", "here", "original", "times", "goal", "reached")
    head += ("GB planned", "peak", "original", "goal", "compile, s")
    machines = sorted({report["machine"] for report in reports.values()})
    return f"{markdown(head, rows)}\n{'; '.join(machines)}"


def one_gpu() -> dict[str, str]:
    """Environment variables with which JAX uses the first GPU, and nothing else."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"CUDA_VISIBLE_DEVICES": first, "JAX_PLATFORMS": "cuda"}


def check_gpu() -> None:
    """Ends the program where there is none; asked in another process, which gives it free again."""
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    answer = subprocess.run(ask, env=os.environ | one_gpu(), capture_output=True, text=True)
    if answer.returncode:
        sys.exit(
            f"{answer.stderr}JAX finds no NVIDIA GPU here. With one, install the extra `cuda`: "
            'pip install -e ".[cuda]"; benchmarks.train_step and benchmarks.inference run anywhere.'
        )


def make(run: tuple[str, str, str], path: Path, first: Path | None, *, repeats: int) -> bool:
    """Makes one run, which writes `path`; whether it succeeded.

    Args:
        run: config, variant and mode.
        path: file of the run.
        first: file of a short run before it, which compiles; None without one.
        repeats: timed runs.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(path.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    commands = [command(*run, path, repeats=repeats)]
    if first is not None and not first.exists():
        commands.insert(0, command(*run, first, repeats=1))
    environment = os.environ | one_gpu() | cache
    return all(subprocess.run(line, env=environment).returncode == 0 for line in commands)


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Makes the runs that are missing and prints the table."""
    del argv
    output, reports, failed = Path(values.output), {}, []
    output.mkdir(parents=True, exist_ok=True)
    runs = {"_".join(run): run for run in itertools.product(TARGETS, VARIANTS, MODES)}
    paths = {name: output / f"{name}.json" for name in runs}
    missing = [name for name in runs if values.only in name and not paths[name].exists()]
    if missing:
        check_gpu()
    end = time.monotonic() + 60 * values.minutes
    try:
        for name, run in runs.items():
            path = paths[name]
            first = path.with_suffix(".first.json") if "training" in run else None
            if name in missing and time.monotonic() < end:
                print(f"{name} ...", flush=True)
                if not make(run, path, first, repeats=values.repeats):
                    failed.append(name)
            if path.exists():
                reports[run] = json.loads(path.read_text())
                if first and first.exists():
                    reports[run]["compile_s"] = json.loads(first.read_text())["compile_s"]
    finally:
        if reports:
            print(table(reports), flush=True)
    if failed:
        sys.exit(f"These failed, for the reasons told above: {', '.join(failed)}.")
    if not reports:
        sys.exit(f"--only={values.only!r} is in the name of no run, and {output} holds none.")


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    flags.DEFINE_string("output", "runs/gpu", "Folder for a JSON file a run.", flag_values=values)
    flags.DEFINE_string("only", "", "Make only runs whose names contain this.", flag_values=values)
    flags.DEFINE_integer("repeats", 10, "Timed runs; medians are told.", flag_values=values)
    flags.DEFINE_float("minutes", float("inf"), "Begins no run after so many.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    # As an interrupt: the run that is under way is stopped too, and the table printed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    define_own_flags(flags.FLAGS)
    app.run(main)
