"""The original PyTorch implementation in a user's clone, timed next to this project.

    python -m benchmarks.original --repo=CLONE --config=configs/cifar10_tiny.py --batch=32

Both run the same network in one process and take turns, on a GPU if both frameworks see one, else
on the CPU: a training step and an evaluation of the same random images. The weights are those of
the clone, converted as its checkpoints are. Before anything is timed both networks must give the
same logits. Every solve takes all of its steps: tolerances are zero, the Jacobian loss is off.

Memory is what a call needs beyond what lies in memory between calls. On a CPU both are measured by
the operating system. On a GPU the original's is PyTorch's count of allocated bytes, and this
project's is XLA's plan of the compiled program.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import inference, train_step
from benchmarks.original_clone import HOW_TO, PLAIN_LAYERS, CloneError, Original, build
from benchmarks.process_memory import growth
from benchmarks.report import markdown, write_json
from benchmarks.timing import describe_machine, measure_in_turn
from benchmarks.workload import forced, random_batch
from mdeq_jax.convert import convert_state_dict
from mdeq_jax.models import build_model
from mdeq_jax.runtime import command_line

ORIGINAL, HERE = "original", "here"
TRAINING, INFERENCE = "training", "inference"
# Of the logits' largest number; float32 gives about 1e-6, on GPUs with TF32 about 1e-3.
AGREEMENT = 1e-2


class Program(NamedTuple):
    """One of the four programs that are timed.

    Attributes:
        call: runs it and waits.
        memory: bytes of a call, see the module; None if unknown.
        evaluations: evaluations of the cell in the last call, by solve.
    """

    call: Callable[[], Any]
    memory: Callable[[], int | None]
    evaluations: Callable[[], dict[str, int]]


def device_of(platform: str) -> str:
    """PyTorch's name of the device that both frameworks use.

    Raises:
        RuntimeError: JAX uses a GPU that PyTorch does not see.
    """
    import torch  # pyright: ignore[reportMissingImports]

    if platform == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError(
            "JAX uses a GPU, PyTorch sees none: install its CUDA build, or set JAX_PLATFORMS=cpu."
        )
    return "cuda"


def compare(original: Original, config, batch: dict) -> tuple[dict, float]:
    """The original's weights as Flax variables, and how far apart the logits are.

    Returns:
        The variables; the largest difference of the logits after `PLAIN_LAYERS` applications of
        the cell, over the largest logit.

    Raises:
        WeightsFileError: the networks have other parameters.
        ValueError: they compute something else.
    """
    variables = convert_state_dict(original.state_dict, config)
    apply = jax.jit(build_model(config).apply, static_argnames="plain_layers")
    here: Any = apply(variables, batch["image"], plain_layers=PLAIN_LAYERS)
    here, there = np.asarray(here.logits), original.plain()
    difference = float(np.max(np.abs(here - there)) / np.max(np.abs(there)))
    if not difference < AGREEMENT:
        raise ValueError(
            f"The logits of the original and of this project differ by {difference:.1e} of their "
            f"size, more than {AGREEMENT}: the clone computes another network."
        )
    return variables, difference


def programs_here(config, batch_size: int, variables: dict) -> dict[str, Program]:
    """Both programs of this project, compiled."""
    programs, steps = {}, config.solver.forward.max_steps
    step, arguments = train_step.prepare_step(config, batch_size, variables)
    compiled = step.lower(*arguments).compile()
    take, last = train_step.repeat_step(compiled, arguments), {}

    def train():
        last[TRAINING] = jax.block_until_ready(take())

    def trained():
        scalars = jax.device_get(last[TRAINING].scalars)
        return {way: int(scalars[f"{way}/nfe"][0]) for way in ("forward", "backward")}

    programs[TRAINING] = Program(train, _memory(train, compiled), trained)
    network = build_model(config), variables
    run, _, compiled = inference.compile_step(config, batch_size, network)

    def infer():
        last[INFERENCE] = jax.block_until_ready(run(steps))

    def inferred():
        return {"forward": int(np.max(jax.device_get(last[INFERENCE][1]["nfe"])))}

    programs[INFERENCE] = Program(infer, _memory(infer, compiled), inferred)
    return programs


def _memory(call: Callable, compiled) -> Callable[[], int | None]:
    if jax.default_backend() == "cpu":
        return lambda: growth(call)
    plan = compiled.memory_analysis()
    planned = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return lambda: planned


def programs_of(original: Original) -> dict[str, Program]:
    """Both programs of the original."""

    def program(call, ways):
        return Program(
            call,
            lambda: original.memory(call),
            lambda: {way: original.evaluations[way] for way in ways},
        )

    return {
        TRAINING: program(original.train, ("forward", "backward")),
        INFERENCE: program(original.infer, ("forward",)),
    }


def measure(repo: str, config, batch_size: int, repeats: int) -> dict:
    """Everything about both implementations of a config that `forced` made; see the module."""
    batch = random_batch(config, batch_size)
    original = build(repo, config, batch, device_of(jax.default_backend()))
    variables, difference = compare(original, config, batch)
    sides = {
        ORIGINAL: programs_of(original),
        HERE: programs_here(config, batch_size, variables),
    }
    rows = []
    for mode in (TRAINING, INFERENCE):
        times = measure_in_turn({side: sides[side][mode].call for side in sides}, repeats)
        for side, timing in times.items():
            program = sides[side][mode]
            rows.append(
                {
                    "program": mode,
                    "side": side,
                    "seconds": timing._asdict(),
                    "images_per_second": batch_size / timing.median,
                    "times_original": times[ORIGINAL].median / timing.median,
                    "evaluations": program.evaluations(),
                    "memory_bytes": program.memory(),
                }
            )
    return {
        "benchmark": "original",
        "config": config.name,
        "machine": describe_machine(),
        "batch": batch_size,
        "solver_steps": [config.solver.forward.max_steps, config.solver.backward.max_steps],
        "logits_differ": difference,
        "rows": rows,
    }


def table(report: dict) -> str:
    """The report, to read."""
    rows = []
    for row in report["rows"]:
        seconds, held = row["seconds"], row["memory_bytes"]
        rows.append(
            (
                f"{row['program']}, {row['side']}",
                f"{1e3 * seconds['median']:.1f}",
                f"{1e3 * seconds['low']:.1f} to {1e3 * seconds['high']:.1f}",
                f"{row['images_per_second']:.2f}",
                f"{row['times_original']:.2f}",
                " + ".join(map(str, row["evaluations"].values())),
                "" if held is None else f"{held / 1e9:.3f}",
            )
        )
    head = ("", "ms", "quartiles", "images/s", "x original", "evaluations", "GB a call")
    return (
        f"{report['config']}, batch {report['batch']}, float32, {report['machine']}\n"
        f"{markdown(head, rows)}\n"
        f"Logits after {PLAIN_LAYERS} layers differ by {report['logits_differ']:.1e} of their size."
    )


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints the table, writes the file."""
    del argv
    if values.repo is None:
        sys.exit(HOW_TO)
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"The clone needs PyTorch, which is not installed.\n\n{HOW_TO}")
    if jax.device_count() > 1:
        sys.exit("One device is compared: choose it with CUDA_VISIBLE_DEVICES.")
    config = forced(
        values.config,
        precision="float32",
        forward_steps=values.forward_steps,
        backward_steps=values.backward_steps,
    )
    with config.unlocked():
        config.jacobian.frequency = 0.0
    try:
        report = measure(values.repo, config, values.batch, values.repeats)
    except CloneError as error:
        sys.exit(f"{error}\n\n{HOW_TO}")
    print(table(report))
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    command_line.define_path("repo", "The clone of the original.", flag_values=values)
    config_flags.DEFINE_config_file(
        "config",
        "configs/cifar10_tiny.py",
        "A classifier's config; --config.FIELD=VALUE overrides a field.",
        flag_values=values,
    )
    for name, default, text in (
        ("batch", 32, "Images in a batch."),
        ("repeats", 7, "Timed runs of each; medians and quartiles are reported."),
        ("forward_steps", None, "Forced forward solver steps; default: the config's."),
        ("backward_steps", None, "Forced backward solver steps; default: the config's."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)
    command_line.define_path("json", "File for the report, as JSON.", flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    define_own_flags(flags.FLAGS)
    app.run(main)
