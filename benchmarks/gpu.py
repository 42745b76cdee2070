"""The three networks that the original was timed on, on one GPU, next to the original's figures.

    python -m benchmarks.gpu --output=runs/gpu

Training and inference in float32 (convolutions in TF32, JAX's default) and in bfloat16 (Broyden's
history too), each plain, with Pallas kernels, with CUDA graphs of the solver loops, and with both.
Every solve takes all of its steps, as the original's did for its figures.

First `--jobs` processes at a time compile, the most telling programs first; more would disturb XLA
while it times its algorithms. Then one process after the other times its programs, alone on the
machine, and others take the training programs from the cache for their peak memory. A program whose
report is in `--output` is not run again: after an interruption, or when `--minutes` are over, the
same command goes on. `--only=cifar10_tiny` takes those whose names contain this, `--only=none`
prints the reports that are there. `--tiny` rehearses all of it on any machine, with batches of 2
and solves of 2 steps. One GPU is used, the first.
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

from benchmarks.gpu_table import TARGETS, table
from mdeq_jax.runtime import command_line
from mdeq_jax.runtime.compilation import LOOP_GRAPHS

_HISTORY = [f"--config.solver.{way}.history_dtype=bfloat16" for way in ("forward", "backward")]
PRECISIONS = {"float32": [], "bfloat16": _HISTORY}
GRAPHS = " ".join(LOOP_GRAPHS)


class Variant(NamedTuple):
    """How a program is computed: arguments of the config, and flags of XLA."""

    arguments: tuple[str, ...] = ()
    xla_flags: str = ""


VARIANTS = {
    "plain": Variant(("--config.pallas=False",)),
    "pallas_graphs": Variant(("--config.pallas=True",), GRAPHS),
    "graphs": Variant(("--config.pallas=False",), GRAPHS),
    "pallas": Variant(("--config.pallas=True",)),
}
MODES = ("training", "inference")


class Process(NamedTuple):
    """The programs that one process runs: training and inference of one network.

    Attributes:
        config: name of the config.
        precision: key of `PRECISIONS`.
        variant: key of `VARIANTS`.
    """

    config: str
    precision: str
    variant: str

    @property
    def name(self) -> str:
        """Of the process and its files."""
        return f"{self.config}_{self.precision}_{self.variant}"

    def report(self, folder: Path, mode: str) -> Path:
        """The file of a program's report."""
        return folder / f"{self.name}_{mode}.json"

    def missing(self, folder: Path) -> list[str]:
        """The modes that `folder` has no report of."""
        return [mode for mode in MODES if not self.report(folder, mode).exists()]


PROCESSES = [
    Process(config, precision, variant)
    for variant in VARIANTS
    for config, precision in itertools.product(TARGETS, PRECISIONS)
]


def start(process: Process, modes: list[str], stage: str, folder: Path, values):
    """Starts a process, and returns it."""
    target, variant = TARGETS[process.config], VARIANTS[process.variant]
    batch, (forward, backward) = (2, (2, 2)) if values.tiny else (target.batch, target.steps)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_worker",
        f"--config=configs/{process.config}.py",
        *PRECISIONS[process.precision],
        *variant.arguments,
        f"--stage={stage}",
        f"--process={process.name}",
        f"--modes={','.join(modes)}",
        f"--folder={folder}",
        f"--precision={process.precision}",
        f"--batch={batch}",
        f"--repeats={values.repeats}",
        f"--forward_steps={forward}",
        f"--backward_steps={backward}",
    ]
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {variant.xla_flags}".strip(),
    }
    with open(folder / f"{process.name}.{stage}.log", "w") as log:
        return subprocess.Popen(
            command,
            env=os.environ | chosen | ({} if values.tiny else one_gpu()),
            stdout=log,
            stderr=log,
        )


def one_gpu() -> dict[str, str]:
    """Environment variables with which JAX uses the first GPU, and nothing else."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"CUDA_VISIBLE_DEVICES": first, "JAX_PLATFORMS": "cuda"}


def check_gpu() -> None:
    """Ends the program if there is no GPU; asked in another process, which gives it free again."""
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    answer = subprocess.run(ask, env=os.environ | one_gpu(), capture_output=True, text=True)
    if answer.returncode:
        sys.exit(
            f"{answer.stderr}JAX finds no NVIDIA GPU here. With one, install the extra `cuda`: "
            'pip install -e ".[cuda]"; benchmarks.train_step and benchmarks.inference run anywhere.'
        )


def run_stage(stage: str, work: dict[Process, list[str]], folder: Path, end: float, values) -> None:
    """Prepares `--jobs` processes at a time, then lets one after the other run its programs.

    Args:
        stage: "measure" or "memory".
        work: the modes of each process, in the order in which they are run.
        folder: of reports.
        end: of the time, by `time.monotonic`.
        values: flags.
    """
    for old in (*folder.glob(f"*.{stage}.turn"), *folder.glob(f"*.{stage}.ready")):
        old.unlink()
    running: dict[Process, subprocess.Popen] = {}

    def preparing():
        return [
            process
            for process in running
            if running[process].poll() is None
            and not (folder / f"{process.name}.{stage}.ready").exists()
        ]

    # A part of what is left, so that what is compiled is measured too.
    prepared_by = time.monotonic() + values.compile_share * (end - time.monotonic())
    try:
        for process, modes in work.items():
            wait(lambda: len(preparing()) < values.jobs, prepared_by)
            if time.monotonic() >= prepared_by:
                break
            running[process] = start(process, modes, stage, folder, values)
        wait(lambda: not preparing(), prepared_by)
        stop([running.pop(process) for process in preparing()])
        for process, child in running.items():
            (folder / f"{process.name}.{stage}.turn").touch()
            wait(lambda child=child: child.poll() is not None, end)
            print(f"{process.name}: {stage} ended with {child.poll()}", flush=True)
    finally:
        stop(running.values())


def wait(condition, end: float) -> None:
    """Until `condition()`, but no longer than to `end`."""
    while time.monotonic() < end and not condition():
        time.sleep(0.1)


def stop(processes) -> None:
    """Ends processes that still run."""
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def read_reports(folder: Path) -> dict[Process, dict[str, dict]]:
    """Process -> mode -> report of every program that has been measured, its peak included."""
    reports = {}
    for process in PROCESSES:
        for mode in MODES:
            path = process.report(folder, mode)
            if path.exists():
                report = json.loads(path.read_text())
                memory = path.with_suffix(".memory.json")
                if memory.exists():
                    report |= json.loads(memory.read_text())
                reports.setdefault(process, {})[mode] = report
    return reports


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Runs what is missing and prints the table."""
    del argv
    folder = Path(values.output)
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * values.minutes
    work = {p: p.missing(folder) for p in PROCESSES if values.only in p.name and p.missing(folder)}
    try:
        if work:
            if not values.tiny:
                check_gpu()
            memory_s = min(60 * values.minutes / 5, 60 * 60)
            run_stage("measure", work, folder, end - memory_s, values)
            training = {p: ["training"] for p in work if p.report(folder, "training").exists()}
            run_stage("memory", training, folder, end, values)
    finally:
        reports = read_reports(folder)
        if reports:
            print(table(reports), flush=True)
    failed = [f"{process.name} {mode}" for process in work for mode in process.missing(folder)]
    if failed:
        sys.exit(f"No report yet, see the logs in {folder}: {', '.join(failed)}.")
    if not reports:
        sys.exit(f"--only={values.only!r} names no process, and {folder} has no report.")


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    command_line.define_path(
        "output", "Folder for reports and logs.", "runs/gpu", flag_values=values
    )
    flags.DEFINE_string("only", "", "Only processes whose names contain it.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Timed runs, for the median.", flag_values=values)
    flags.DEFINE_float("minutes", 120.0, "Stops after so long.", flag_values=values)
    flags.DEFINE_float("compile_share", 0.6, "Part of it for compiling.", flag_values=values)
    flags.DEFINE_integer("jobs", 4, "Processes that compile at a time.", flag_values=values)
    flags.DEFINE_bool("tiny", False, "Rehearses on any device.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    # As an interrupt: what is under way is stopped too, and the table printed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    define_own_flags(flags.FLAGS)
    app.run(main)
