"""One process of `benchmarks.gpu`: the programs of one network, precision and variant.

Stage "measure": it compiles its programs into JAX's persistent cache, waits for its turn and times
them, alone on the machine. Stage "memory": a process of its own takes the training program from the
cache and runs it, for the peak memory of the device. While XLA tries its algorithms out it takes
memory that a step does not need. `benchmarks.gpu` starts them all, as
`python -m benchmarks.gpu_worker --stage=... --process=... --modes=...`.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import inference, train_step
from benchmarks.report import write_json
from benchmarks.timing import describe_machine, measure_in_turn
from benchmarks.workload import forced, full_nfe, random_network
from mdeq_jax.runtime import devices

POLL_S = 0.05


def prepare(config, mode: str, batch: int):
    """A program before it is traced: the mapped step and its arguments."""
    if mode == "training":
        return train_step.prepare_step(config, batch)
    return inference.prepare_step(config, batch, random_network(config))


def call(mode: str, compiled, arguments: tuple, max_steps: int):
    """A function without arguments that runs a program, every solve with all of its steps."""
    if mode == "training":
        return train_step.repeat_step(compiled, arguments)
    *held, _ = arguments
    budget = devices.for_each_device(np.int32(max_steps))
    return lambda: compiled(*held, budget)


def evaluations(mode: str, result) -> dict[str, int]:
    """Evaluations of the cell that a call made, by solve."""
    if mode == "inference":
        return {"forward": int(np.max(jax.device_get(result[1]["nfe"])))}
    scalars = jax.device_get(result.scalars)
    return {way: int(scalars[f"{way}/nfe"][0]) for way in ("forward", "backward")}


def wait_for(path: Path) -> None:
    """Waits until `path` is there."""
    while not path.exists():
        time.sleep(POLL_S)


def measure(config, mode: str, batch: int, compiled, arguments: tuple, repeats: int) -> dict:
    """Times one program."""
    # Twice before it counts: graphs of loops have failed in their second execution.
    run = call(mode, compiled, arguments, config.solver.forward.max_steps)
    nfe = evaluations(mode, run())
    jax.block_until_ready(run())
    timing = measure_in_turn({"step": run}, repeats)["step"]
    ways = ("forward", "backward") if mode == "training" else ("forward",)
    early = [way for way in ways if nfe[way] != full_nfe(way, config.solver[way].max_steps)]
    return {
        "config": config.name,
        "mode": mode,
        "batch": batch,
        "precision": config.precision,
        "machine": describe_machine(),
        "nfe": nfe,
        "ended_early": early,
        "seconds": timing._asdict(),
        "images_per_second": batch / timing.median,
        "planned_bytes": train_step.memory(compiled)["planned_bytes"],
    }


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Compiles and measures the programs that the flags name."""
    del argv
    folder, name = Path(values.folder), values.process
    config = forced(
        values.config,
        precision=values.precision,
        forward_steps=values.forward_steps,
        backward_steps=values.backward_steps,
    )
    programs = {}
    for mode in values.modes:
        step, arguments = prepare(config, mode, values.batch)
        start = time.perf_counter()
        lowered = step.lower(*arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
        print(mode, json.dumps(seconds), flush=True)
        programs[mode] = compiled, arguments, seconds
    (folder / f"{name}.{values.stage}.ready").touch()
    wait_for(folder / f"{name}.{values.stage}.turn")
    for mode, (compiled, arguments, seconds) in programs.items():
        path = str(folder / f"{name}_{mode}.json")
        if values.stage == "memory":
            run = call(mode, compiled, arguments, config.solver.forward.max_steps)
            jax.block_until_ready([run() for _ in range(2)])
            peak = train_step.memory(compiled)["peak_bytes"]
            write_json(path.replace(".json", ".memory.json"), {"peak_bytes": peak})
        else:
            report = measure(config, mode, values.batch, compiled, arguments, values.repeats)
            write_json(path, report | seconds)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this program's flags."""
    config_flags.DEFINE_config_file("config", None, "The config.", flag_values=values)
    flags.DEFINE_enum("stage", "measure", ["measure", "memory"], "What to do.", flag_values=values)
    flags.DEFINE_string("process", "", "Name of this process.", flag_values=values)
    flags.DEFINE_list("modes", [], "Programs: training, inference.", flag_values=values)
    flags.DEFINE_string("folder", "", "Folder for reports.", flag_values=values)
    flags.DEFINE_string("precision", "float32", "Of the network.", flag_values=values)
    for name in ("batch", "repeats", "forward_steps", "backward_steps"):
        flags.DEFINE_integer(name, 1, f"As {name} of the benchmarks.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
