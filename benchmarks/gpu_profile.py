"""Traces training steps on a GPU with JAX's profiler, and lists their kernels.

    XLA_FLAGS=--xla_gpu_enable_command_buffer= python -m benchmarks.gpu_profile \\
        --config=configs/cifar10_large.py --batch=96 --output=runs/gpu/profile

Writes the profiler's trace (`trace.json.gz`) and the compiled program (`program.txt.gz`), and
prints two tables: the kernels by kind, and the shares of convolutions, of group norms and of
the gaps between kernels, in which a loop waits for the host or for a launch. Without the flag XLA
puts kernels into CUDA graphs, where they have no names.
"""

import collections
import gzip
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks import train_step
from benchmarks.hlo import computations
from benchmarks.report import define_flags, markdown
from benchmarks.trace import operation_name
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
# Longer gaps are those between two steps, not in one.
LONGEST_GAP_US = 50.0


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name in the trace."""
    return next((kind for kind, parts in KINDS if any(p in kernel for p in parts)), OTHER)


def kernels_of(trace: dict) -> list[dict]:
    """The profiler's events of kernels, which are those of processes named "/device:GPU..."."""
    gpus = {
        event["pid"]
        for event in trace["traceEvents"]
        if event.get("name") == "process_name" and "GPU" in event["args"]["name"]
    }
    return [e for e in trace["traceEvents"] if e.get("ph") == "X" and e["pid"] in gpus]


def group_norms(program: str) -> set[str]:
    """Names of the instructions of a compiled program that compute group norms."""
    found, _ = computations(program)
    lines = [line for body in found.values() for line in body]
    return {line.name for line in lines if "group_norm" in operation_name(line)}


def shares(trace: dict, steps: int, norms: set[str]) -> str:
    """Milliseconds of a step, and shares, of what decides the speed.

    Args:
        trace: the profiler's JSON.
        steps: traced steps.
        norms: names of the instructions of group norms, from `group_norms`; a kernel that fuses a
            norm with something else counts as its last operation.
    """
    events = sorted(kernels_of(trace), key=lambda event: event["ts"])
    times, end = collections.Counter(), events[0]["ts"]
    for event in events:
        kind, start = kind_of(event["name"]), event["ts"]
        if kind.startswith("convolution"):
            times["convolutions"] += event["dur"]
        elif kind.startswith("group norm") or event.get("args", {}).get("hlo_op") in norms:
            times["group norms"] += event["dur"]
        else:
            times["everything else"] += event["dur"]
        if 0 < start - end <= LONGEST_GAP_US:
            times["gaps between kernels"] += start - end
        end = max(end, start + event["dur"])
    total = times.total()
    rows = [
        (name, f"{taken / 1e3 / steps:.2f}", f"{taken / total:.0%}")
        for name, taken in times.most_common()
    ]
    return markdown(("a training step", "ms", "share"), rows)


def table(trace: dict, steps: int) -> str:
    """Kernels and milliseconds of a step by kind.

    Args:
        trace: the profiler's JSON.
        steps: traced steps.
    """
    counts, seconds = collections.Counter(), collections.Counter()
    for event in kernels_of(trace):
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
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    program = gzip.decompress((folder / "program.txt.gz").read_bytes()).decode()
    if not kernels_of(trace):
        sys.exit("The trace has no kernels of a GPU: run this on one.")
    print(table(trace, STEPS))
    print(shares(trace, STEPS, group_norms(program)))


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
