"""A training step in the equilibrium phase: time, memory, compilation, and the device's roof.

    python -m benchmarks.train_step --config=configs/cifar10_tiny.py --batch=32
    python -m benchmarks.train_step --config=configs/imagenet_small.py --batch=128 \\
        --precision=bfloat16 --forward_steps=26 --backward_steps=27 --json=runs/step.json

What is timed is what `train.py` runs, the mapped `make_train_step` with its state donated, on
random images that lie on the device. Every solve takes all of its steps. A config's Jacobian loss
is drawn as in training: set `--config.jacobian.frequency=0` (or 1) where steps are to be alike.
"""

import time
from collections.abc import Callable

import jax
from absl import app, flags, logging

from benchmarks.analytic_cost import Work, training_work
from benchmarks.report import define_flags, markdown, write_json
from benchmarks.roofline import beside_roof, roof
from benchmarks.timing import PAIR, convolution_pair, describe_machine, measure_in_turn
from benchmarks.workload import cell_problem, forced_by_flags, full_nfe, random_batch
from mdeq_jax.engine.state import build_optimizer, init_state, make_state
from mdeq_jax.engine.step import make_train_step, training_config
from mdeq_jax.models import apply_cell, build_model
from mdeq_jax.runtime import command_line, devices
from mdeq_jax.runtime.compilation import choose_device_per_core
from mdeq_jax.tasks import build_task

NUM_STEPS, STEPS_PER_EPOCH = 1_000_000, 1_000  # of the training that the step is one of


def prepare_step(config, batch_size: int, variables=None) -> tuple[Callable, tuple]:
    """The training step that `train.py` maps over the devices, not yet traced.

    Args:
        config: the whole config.
        batch_size: over all devices.
        variables: Flax variables to start from; None: those of the initialisation.

    Returns:
        The step; its arguments: a replicated state (which a call donates), the empty carry, a
        batch, and False for the equilibrium phase (static).
    """
    devices.check_batch_size(batch_size, "--batch")
    optimizer = build_optimizer(config.train, NUM_STEPS)
    model = build_model(training_config(config))
    step = devices.pmap(
        make_train_step(model, optimizer, build_task(config), config, STEPS_PER_EPOCH),
        static_argnums=(3,),
        donate_argnums=(0, 1),
    )
    if variables is None:
        state = init_state(model, optimizer, build_task(config), config)
    else:
        state = make_state(variables, optimizer)
    state = devices.replicate(state)
    batch = devices.to_devices(random_batch(config, batch_size))
    return step, (state, (), batch, False)


def repeat_step(compiled, arguments: tuple) -> Callable:
    """A function without arguments that takes a step and returns its `Report`.

    Args:
        compiled: the compiled step.
        arguments: of `prepare_step`; every step takes the same batch.
    """
    state, carry, batch, *_ = arguments
    held = [state]

    def take():
        held[0], _, report = compiled(held[0], carry, batch)
        return report

    return take


def compile_step(config, batch_size: int) -> tuple[Callable, dict, object]:
    """The step as `train.py` compiles it, ready to run.

    Returns:
        A function without arguments that takes a step and returns its `Report`; {"trace_s",
        "compile_s"}; the compiled step, for its analyses.
    """
    step, arguments = prepare_step(config, batch_size)
    start = time.perf_counter()
    lowered = step.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    return repeat_step(compiled, arguments), seconds, compiled


def memory(compiled) -> dict:
    """Bytes on a device: by XLA's plan of the program, and the device's peak if it reports one."""
    plan = compiled.memory_analysis()
    planned = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"planned_bytes": planned, "peak_bytes": stats.get("peak_bytes_in_use")}


def xla_work(config, batch_size: int, compiled) -> Work:
    """XLA's cost analysis of a step, on all devices.

    It counts the body of a loop once. The other rounds of the two solvers' loops are added here,
    each as one evaluation of the cell or one product with its Jacobian, without the solver's own
    work.
    """
    evaluate, product = (_compiled_work(f, args) for f, args in _cell_calls(config, batch_size))
    rounds = config.solver.forward.max_steps - 1, config.solver.backward.max_steps - 1
    step = _work(compiled) * jax.local_device_count()
    return step + evaluate * rounds[0] + product * rounds[1]


def _cell_calls(config, batch_size: int):
    """The cell and the product with its Jacobian, with shapes for their arguments."""
    shapes = jax.eval_shape(lambda: cell_problem(config, batch_size)[1:])
    spec = build_model(config).cell.spec

    def evaluate(weights, z, x):
        return apply_cell(spec, weights, z, x)

    def linearize(weights, z, x):
        return jax.vjp(lambda z: evaluate(weights, z, x), z)[1]

    pullback = jax.eval_shape(linearize, *shapes)
    return (evaluate, shapes), (lambda pullback, u: pullback(u), (pullback, shapes[1]))


def _compiled_work(function, args) -> Work:
    return _work(jax.jit(function).lower(*args).compile())


def _work(compiled) -> Work:
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return Work(cost.get("flops", float("nan")), cost.get("bytes accessed", float("nan")))


def measure(config, batch_size: int, repeats: int) -> dict:
    """Everything about the step of a config that `forced` made; see the module."""
    take, seconds, compiled = compile_step(config, batch_size)
    start = time.perf_counter()
    scalars = jax.device_get(take().scalars)
    ways = [way for way in ("forward", "backward") if f"{way}/nfe" in scalars]
    nfe = {way: int(scalars[f"{way}/nfe"][0]) for way in ways}
    seconds["first_run_s"] = time.perf_counter() - start
    held = memory(compiled)  # before the pair takes some
    times = measure_in_turn({"step": take, PAIR: convolution_pair()}, repeats)
    step, limit = times["step"].median, roof(config.precision)
    report = {
        "benchmark": "train_step",
        "config": config.name,
        "machine": describe_machine(),
        "precision": config.precision,
        "batch": batch_size,
        "devices": jax.local_device_count(),
        "solver_steps": [config.solver.forward.max_steps, config.solver.backward.max_steps],
        "nfe": nfe,
        "seconds": times["step"]._asdict(),
        "pair_seconds": times[PAIR]._asdict(),
        "in_pairs": step / times[PAIR].median,
        "images_per_second": batch_size / step,
        **seconds,
        "memory": held,
        "roof": limit._asdict(),
        "rates": {"xla": beside_roof(xla_work(config, batch_size, compiled), step, limit)},
    }
    if config.gradient.name == "ift":
        work = training_work(config, batch_size, nfe["forward"], nfe["backward"])
        report["rates"]["model"] = beside_roof(work, step, limit)
    return report


def check_steps(report: dict) -> str:
    """A warning where a solve ended before its last step, else an empty string."""
    ended = [
        f"the {way} solve after {nfe} evaluations, not {full_nfe(way, steps)}"
        for (way, nfe), steps in zip(report["nfe"].items(), report["solver_steps"])
        if nfe != full_nfe(way, steps)
    ]
    return "WARNING: ended early: " + ", ".join(ended) if ended else ""


def table(report: dict) -> str:
    """The report, to read."""
    seconds, pair, held = report["seconds"], report["pair_seconds"], report["memory"]
    spread = "{median:.1f} ms, quartiles {low:.1f} to {high:.1f}".format(
        **{name: 1e3 * seconds[name] for name in ("median", "low", "high")}
    )
    rows = [
        ("batch, devices, precision", "{batch}, {devices}, {precision}".format(**report)),
        ("evaluations of the cell", " + ".join(map(str, report["nfe"].values()))),
        ("step", spread),
        ("images per second", f"{report['images_per_second']:.2f}"),
        ("in convolution pairs", f"{report['in_pairs']:.2f} of {1e3 * pair['median']:.2f} ms"),
        ("tracing, compiling", f"{report['trace_s']:.1f} s, {report['compile_s']:.1f} s"),
        ("memory as planned by XLA", f"{held['planned_bytes'] / 1e9:.3f} GB"),
    ]
    if held["peak_bytes"] is not None:
        rows.append(("peak memory of the device", f"{held['peak_bytes'] / 1e9:.3f} GB"))
    for name, rates in report["rates"].items():
        rows.append(
            (
                f"as the {name} counts" if name == "model" else "as XLA counts",
                f"{rates['flops_per_second'] / 1e9:,.1f} GFLOP/s ({rates['flops_share']:.1%}), "
                f"{rates['bytes_per_second'] / 1e9:,.1f} GB/s ({rates['bytes_share']:.1%})",
            )
        )
    limit = report["roof"]
    rows.append(
        (
            "the roof",
            f"{limit['flops'] / 1e9:,.1f} GFLOP/s, {limit['bandwidth'] / 1e9:,.1f} GB/s; "
            f"{limit['source']}",
        )
    )
    return markdown((f"{report['config']}, training", report["machine"]), rows)


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints the table, writes the file."""
    del argv
    if values.device_per_core:
        choose_device_per_core(values.batch)
    report = measure(forced_by_flags(values), values.batch, values.repeats)
    print(table(report))
    report["warning"] = check_steps(report)
    if report["warning"]:
        print(report["warning"])
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    define_flags(values)
    command_line.define_device_per_core(flag_values=values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
