"""Inference: latency of one image, throughput of a batch, against the number of solver steps.

    python -m benchmarks.inference --config=configs/cifar10_large.py --batch=8
    python -m benchmarks.inference --config=configs/imagenet_small.py --batch=128 \\
        --step_budgets=5,10,26 --precision=bfloat16

What is timed is the evaluation step that `eval.py` runs, figures of the task included, on random
images that lie on the device. Every solve takes all of its budget.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks.analytic_cost import inference_work
from benchmarks.report import define_flags, markdown, write_json
from benchmarks.roofline import beside_roof, roof
from benchmarks.timing import PAIR, convolution_pair, describe_machine, measure_in_turn
from benchmarks.train_step import memory
from benchmarks.workload import forced, random_batch, random_network
from mdeq_jax.engine.step import make_eval_step
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import build_task


def prepare_step(config, batch_size: int, network) -> tuple[Callable, tuple]:
    """The evaluation step that `eval.py` maps over the devices, not yet traced.

    Args:
        config: whose solver's `max_steps` is the largest budget.
        batch_size: over all devices.
        network: model and variables.

    Returns:
        The step; its arguments: replicated variables, the empty carry, a batch, and the step
        budget, 1.
    """
    devices.check_batch_size(batch_size, "--batch")
    model, variables = network
    step = devices.pmap(make_eval_step(model, build_task(config)))
    replicated = devices.replicate(variables)
    batch = devices.to_devices({**random_batch(config, batch_size), "mask": jnp.ones(batch_size)})
    return step, (replicated, (), batch, devices.for_each_device(np.int32(1)))


def compile_step(config, batch_size: int, network) -> tuple:
    """`prepare_step`, compiled.

    Returns:
        `(step_budget) -> (sums, per_sample, carry)`; seconds of compiling; the compiled step.
    """
    step, arguments = prepare_step(config, batch_size, network)
    start = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    seconds = time.perf_counter() - start

    def infer(step_budget: int):
        return compiled(*arguments[:3], devices.for_each_device(np.int32(step_budget)))

    return infer, seconds, compiled


def measure(config, batch_size: int, repeats: int, step_budgets: list[int]) -> dict:
    """Everything about the inference of a config that `forced` made; see the module.

    Args:
        config: with at least as many forward solver steps as the largest budget.
        batch_size: for the throughput, over all devices.
        repeats: timed runs of each.
        step_budgets: numbers of solver steps, ascending.
    """
    network, limit = random_network(config), roof(config.precision)
    rows, last = [], {}
    for size in dict.fromkeys((jax.device_count(), batch_size)):
        infer, compile_s, compiled = compile_step(config, size, network)
        calls = {budget: (lambda b=budget, run=infer: run(b)) for budget in step_budgets}
        times = measure_in_turn({**calls, PAIR: convolution_pair()}, repeats)
        for budget in step_budgets:
            nfe = int(np.max(jax.device_get(infer(budget)[1]["nfe"])))
            seconds = times[budget]
            work = inference_work(config, size, nfe)
            rows.append(
                {
                    "batch": size,
                    "step_budget": budget,
                    "nfe": nfe,
                    "seconds": seconds._asdict(),
                    "in_pairs": seconds.median / times[PAIR].median,
                    "images_per_second": size / seconds.median,
                    "rates": beside_roof(work, seconds.median, limit),
                }
            )
        last = {"compile_s": compile_s, "memory": memory(compiled)}
    return {
        "benchmark": "inference",
        "config": config.name,
        "machine": describe_machine(),
        "precision": config.precision,
        "batch": batch_size,
        "pair_seconds": times[PAIR]._asdict(),
        "images_per_second": rows[-1]["images_per_second"],
        **last,
        "roof": limit._asdict(),
        "rows": rows,
    }


def table(report: dict) -> str:
    """The report, to read."""
    rows = []
    for row in report["rows"]:
        seconds = {name: 1e3 * row["seconds"][name] for name in ("median", "low", "high")}
        rows.append(
            (
                row["batch"],
                row["step_budget"],
                row["nfe"],
                f"{seconds['median']:.2f}",
                f"{seconds['low']:.2f} to {seconds['high']:.2f}",
                f"{row['images_per_second']:.2f}",
                f"{row['in_pairs']:.2f}",
                f"{row['rates']['flops_per_second'] / 1e9:,.1f}",
                f"{row['rates']['flops_share']:.1%}",
            )
        )
    head = (
        "batch",
        "steps",
        "NFE",
        "ms",
        "quartiles",
        "images/s",
        "in pairs",
        "GFLOP/s",
        "of roof",
    )
    held = report["memory"]
    peak = (
        "" if held["peak_bytes"] is None else f", device's peak {held['peak_bytes'] / 1e9:.3f} GB"
    )
    return (
        f"{report['config']}, inference, {report['precision']}, {report['machine']}\n"
        f"{markdown(head, rows)}\n"
        f"Batch {report['batch']}: compiled in {report['compile_s']:.1f} s, memory as planned by "
        f"XLA {held['planned_bytes'] / 1e9:.3f} GB{peak}."
    )


def check_steps(report: dict) -> str:
    """A warning where a solve ended before its budget, else an empty string."""
    ended = [
        f"after {row['nfe']} evaluations, not {row['step_budget'] + 1} (batch {row['batch']})"
        for row in report["rows"]
        if row["nfe"] != row["step_budget"] + 1
    ]
    return "WARNING: solves ended early: " + ", ".join(ended) if ended else ""


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints the table, writes the file."""
    del argv
    budgets = sorted({int(number) for number in values.step_budgets})
    steps = values.forward_steps or max(budgets, default=None)
    config = forced(values.config, precision=values.precision, forward_steps=steps)
    most = config.solver.forward.max_steps
    budgets = budgets or sorted({max(1, most // 4), max(1, most // 2), most})
    if budgets[0] < 1 or budgets[-1] > most:
        raise ValueError(
            f"--step_budgets must be from 1 to the {most} steps of the solver (--forward_steps); "
            f"got {budgets}."
        )
    report = measure(config, values.batch, values.repeats, budgets)
    print(table(report))
    report["warning"] = check_steps(report)
    if report["warning"]:
        print(report["warning"])
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    define_flags(values, solves=("forward",))
    flags.DEFINE_list(
        "step_budgets",
        [],
        "Numbers of solver steps; default: a quarter, half and all of them.",
        flag_values=values,
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
