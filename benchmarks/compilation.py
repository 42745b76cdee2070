"""The time of each config's first training step: tracing, compiling, running.

    python -m benchmarks.compilation --names=digits,cifar10_tiny,cifar10_large --batch=2

It is the step of the equilibrium phase, as `train.py` compiles it. If JAX's persistent compilation
cache is on (JAX_COMPILATION_CACHE_DIR), a second run shows how much time it saves.
"""

import importlib
import time

import jax
from absl import app, flags, logging

from benchmarks.report import markdown, write_json
from benchmarks.timing import describe_machine
from benchmarks.train_step import compile_step, memory
from benchmarks.workload import forced
from mdeq_jax.runtime import command_line

HEAD = ("config", "tracing, s", "compiling, s", "first step, s", "memory as planned, GB")


def measure(config, batch_size: int) -> dict:
    """Seconds of the first step of a config, and its memory."""
    take, seconds, compiled = compile_step(forced(config), batch_size)
    start = time.perf_counter()
    jax.block_until_ready(take())
    first = time.perf_counter() - start
    return {"config": config.name, **seconds, "first_run_s": first, "memory": memory(compiled)}


def table(report: dict) -> str:
    """The report, to read."""
    rows = [
        (
            row["config"],
            f"{row['trace_s']:.1f}",
            f"{row['compile_s']:.1f}",
            f"{row['first_run_s']:.2f}",
            f"{row['memory']['planned_bytes'] / 1e9:.2f}",
        )
        for row in report["rows"]
    ]
    cached = "on" if report["persistent_cache"] else "off"
    head = f"batch {report['batch']}, {report['machine']}, persistent compilation cache {cached}"
    return f"{head}\n{markdown(HEAD, rows)}"


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures one config after the other, prints the table, writes the file."""
    del argv
    report = {
        "benchmark": "compilation",
        "machine": describe_machine(),
        "batch": values.batch,
        "persistent_cache": jax.config.jax_compilation_cache_dir is not None,
        "rows": [],
    }
    for name in values.names:
        print(f"{name} ...", flush=True)
        config = importlib.import_module(f"configs.{name}").get_config()
        report["rows"].append(measure(config, values.batch))
        write_json(values.json, report)  # what is there, should the next one take too long
        jax.clear_caches()
    print(table(report))


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    flags.DEFINE_list("names", None, "Names of files in configs/.", flag_values=values)
    flags.DEFINE_integer("batch", 2, "Images per step.", lower_bound=1, flag_values=values)
    command_line.define_path("json", "File for the report, as JSON.", flag_values=values)
    flags.mark_flag_as_required("names", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
