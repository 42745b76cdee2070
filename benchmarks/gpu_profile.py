"""Traces training steps on a GPU with JAX's profiler, and lists their kernels.

    XLA_FLAGS=--xla_gpu_enable_command_buffer= python -m benchmarks.gpu_profile \\
        --config=configs/cifar10_large.py --batch=96 --output=runs/gpu/profile

Writes the profiler's trace (`trace.json.gz`) and the compiled program (`program.txt.gz`), and
prints a table. Without the flag XLA puts kernels into CUDA graphs, where they have no names.
"""

import collections
import gzip
import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks import train_step
from benchmarks.report import define_flags, markdown
from benchmarks.workload import forced_by_flags
from mdeq_jax.runtime import command_line

STEPS = 2
# Kind of a kernel by a part of its name, the first that fits.
KINDS = (
    ("convolution, forward", ("fprop", "convolve_common", "ImplicitGemmConvolution")),
    ("convolution, input gradient", ("dgrad",)),
    ("convolution, kernel gradient", ("wgrad",)),
    ("group norm, Pallas", ("_normalize",)),
    ("group norm's pullback, Pallas", ("_pull_back",)),
    ("Broyden's history, Pallas", ("_inner_products", "_direction")),
    ("matrix product", ("gemm", "dot")),
    ("copy or fill", ("Memcpy", "Memset", "copy", "transpose", "slice", "concatenate")),
    ("reduction", ("reduce",)),
)
OTHER = "elementwise"


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name in the trace."""
    return next((kind for kind, parts in KINDS if any(p in kernel for p in parts)), OTHER)


def table(trace: dict, steps: int) -> str:
    """Kernels and milliseconds of a step by kind.

    Args:
        trace: the profiler's JSON; kernels are the events of processes named "/device:GPU...".
        steps: traced steps.
    """
    gpus = {
        event["pid"]
        for event in trace["traceEvents"]
        if event.get("name") == "process_name" and "GPU" in event["args"]["name"]
    }
    counts, seconds = collections.Counter(), collections.Counter()
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event["pid"] in gpus:
            kind = kind_of(event["name"])
            counts[kind] += 1
            seconds[kind] += event["dur"] / 1e6
    total = sum(seconds.values())
    rows = [
        (kind, f"{counts[kind] / steps:.0f}", f"{1e3 * taken / steps:.2f}", f"{taken / total:.0%}")
        for kind, taken in seconds.most_common()
    ]
    rows.append(("all", f"{counts.total() / steps:.0f}", f"{1e3 * total / steps:.2f}", "100%"))
    return markdown(("kernels of a training step", "number", "ms", "share"), rows)


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Compiles, traces, writes and prints."""
    del argv
    folder = Path(values.output)
    if not values.table_only:
        folder.mkdir(parents=True, exist_ok=True)
        take, _, compiled = train_step.compile_step(forced_by_flags(values), values.batch)
        (folder / "program.txt.gz").write_bytes(gzip.compress(compiled.as_text().encode()))
        record(take, folder)
    print(table(json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes())), STEPS))


def record(take, folder: Path) -> None:
    """Traces steps into `folder`, and times one without the profiler."""
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(take())
        seconds = time.perf_counter() - start
    print(f"a step without the profiler: {1e3 * seconds:.2f} ms")
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as raw:
        with jax.profiler.trace(raw, profiler_options=options):
            for _ in range(STEPS):
                jax.block_until_ready(take())
        for file in Path(raw).rglob("*.json.gz"):
            shutil.copy(file, folder / "trace.json.gz")


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this program's flags."""
    define_flags(values)
    command_line.define_path(
        "output", "Folder for the trace.", "runs/gpu/profile", flag_values=values
    )
    flags.DEFINE_bool("table_only", False, "Print the table of a trace.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
