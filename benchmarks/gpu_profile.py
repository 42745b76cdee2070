"""Traces training steps on a GPU by JAX's profiler, and keeps what a table of kernels needs.

    python -m benchmarks.gpu_profile --config=configs/cifar10_large.py --batch=96 \\
        --forward_steps=18 --backward_steps=20 --output=runs/gpu/profile

Writes the profiler's trace (`trace.json.gz`) and the compiled program (`program.txt.gz`), which
says what each kernel is part of. Set `XLA_FLAGS=--xla_gpu_enable_command_buffer=` for it: kernels
inside a CUDA graph are traced without the name of their instruction.
"""

import gzip
import shutil
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks import train_step
from benchmarks.report import define_flags
from benchmarks.workload import forced_by_flags

STEPS = 2


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Compiles, waits for `--wait_for` if there is one, traces, writes."""
    del argv
    folder = Path(values.output)
    folder.mkdir(parents=True, exist_ok=True)
    take, seconds, compiled = train_step.compile_step(forced_by_flags(values), values.batch)
    print(seconds, flush=True)
    (folder / "program.txt.gz").write_bytes(gzip.compress(compiled.as_text().encode()))
    while values.wait_for and not Path(values.wait_for).exists():
        time.sleep(0.05)
    for _ in range(3):
        jax.block_until_ready(take())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as raw:
        start = time.perf_counter()
        with jax.profiler.trace(raw, profiler_options=options):
            for _ in range(STEPS):
                jax.block_until_ready(take())
        print(f"{STEPS} steps traced in {time.perf_counter() - start:.3f} s", flush=True)
        for file in Path(raw).rglob("*.json.gz"):
            shutil.copy(file, folder / "trace.json.gz")
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(take())
        print(f"a step without the profiler: {1e3 * (time.perf_counter() - start):.2f} ms")


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this program's flags."""
    define_flags(values)
    flags.DEFINE_string("output", "runs/gpu/profile", "Folder for the trace.", flag_values=values)
    flags.DEFINE_string("wait_for", "", "A file to wait for before tracing.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
