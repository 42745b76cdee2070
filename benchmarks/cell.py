"""The time of one application of the cell, of one product with its Jacobian, and of their parts.

    python -m benchmarks.cell --config=configs/cifar10_large.py --batch=8

Each is timed in a compiled loop, as in a solver, and the parts are timed separately. "Blocks" are
single-scale cells, one per resolution; "fusion" is the rest of the whole. A second division is by
kind: all convolutions of the cell, all its group norms, and the rest (ReLUs, sums, masks,
upsampling). The rest is negative if XLA fuses it or the norms into other kernels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags, logging

from benchmarks.analytic_cost import CELL_PARTS, convolutions, forward_work
from benchmarks.report import define_flags, markdown, write_json
from benchmarks.timing import PAIR, convolution_pair, describe_machine, in_loop, measure_in_turn
from benchmarks.workload import CellProblem, cell_problem, forced
from mdeq_jax.layers import conv2d, group_norm
from mdeq_jax.models import CellInput, MDEQCell, apply_cell

WHOLE, BLOCKS, FUSION, POST = "whole", *CELL_PARTS
CONVOLUTIONS, NORMS, OTHERS = "convolutions", "group norms", "everything else"


def parts(config, problem: CellProblem) -> dict[str, tuple[Callable, tuple]]:
    """What is timed: name -> (function of weights and states, (weights, states)).

    The product with the Jacobian is that with respect to the states.
    """
    return {
        WHOLE: (
            lambda fixed, z: problem.f(fixed[0], z, fixed[1]),
            ((problem.weights, problem.x), problem.z),
        ),
        BLOCKS: _blocks(problem),
        POST: _post_fusion(problem),
        CONVOLUTIONS: _convolutions(config, problem),
        NORMS: _norms(config, problem),
    }


def _blocks(problem: CellProblem):
    """The blocks of each resolution, as a cell of that resolution alone."""
    spec = problem.spec
    specs = [
        spec._replace(
            channels=spec.channels[i : i + 1],
            num_blocks=spec.num_blocks[i : i + 1],
            big_kernels=spec.big_kernels[i : i + 1],
        )
        for i in range(spec.num_scales)
    ]
    # Other weights than the problem's, which does not matter to the time.
    weights = [jax.jit(MDEQCell(single).init_with_output)(jax.random.key(0))[0] for single in specs]
    inputs = []
    for i, z_i in enumerate(problem.z):
        masks = None if problem.x.masks is None else (problem.x.masks[i],)
        inputs.append(CellInput(problem.x.injection if i == 0 else z_i, masks))

    def apply(fixed, z):
        return [apply_cell(single, w, (z_i,), x)[0] for single, w, x, z_i in zip(specs, *fixed, z)]

    return apply, ((weights, inputs), list(problem.z))


def _post_fusion(problem: CellProblem):
    """ReLU, 1x1 convolution and group norm of each resolution; nothing with a single one."""
    spec = problem.spec
    states = [z_i.astype(spec.dtype or z_i.dtype) for z_i in problem.z]
    kernels = [_random((1, 1, z_i.shape[-1], z_i.shape[-1]), z_i.dtype) for z_i in states]
    if spec.num_scales == 1:
        states = kernels = []

    def apply(kernels, z):
        return [
            group_norm(conv2d(nn.relu(z_i), kernel), spec.num_groups // 2, pallas=spec.pallas)
            for kernel, z_i in zip(kernels, z)
        ]

    return apply, (kernels, states)


def _convolutions(config, problem: CellProblem):
    """Every convolution of the cell, each on a separate input."""
    met = [conv for conv in convolutions(config) if conv.part in CELL_PARTS]
    dtype = problem.spec.dtype or problem.z[0].dtype
    batch = problem.z[0].shape[0]
    kernels = [_random((c.size, c.size, c.in_channels, c.out_channels), dtype) for c in met]
    inputs = [
        _random((batch, c.stride * c.height, c.stride * c.width, c.in_channels), dtype) for c in met
    ]

    def apply(kernels, inputs):
        return [conv2d(x, kernel, c.stride) for c, kernel, x in zip(met, kernels, inputs)]

    return apply, (kernels, inputs)


def _norms(config, problem: CellProblem):
    """Every group norm of the cell, with scale and bias: one a convolution, one more a block."""
    spec = problem.spec
    dtype, batch = spec.dtype or problem.z[0].dtype, problem.z[0].shape[0]
    widths, groups, inputs = [], [], []
    for conv in convolutions(config):
        if conv.part in CELL_PARTS:
            last = conv.part == BLOCKS and conv.out_channels < conv.in_channels
            for _ in range(2 if last else 1):
                widths.append(conv.out_channels)
                groups.append(spec.num_groups // (2 if conv.part == POST else 1))
                inputs.append(_random((batch, conv.height, conv.width, widths[-1]), dtype))
    affines = [{"scale": jnp.ones(width), "bias": jnp.zeros(width)} for width in widths]

    def apply(affines, inputs):
        return [
            group_norm(x, g, affine, pallas=spec.pallas)
            for x, g, affine in zip(inputs, groups, affines)
        ]

    return apply, (affines, inputs)


def _random(shape, dtype) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.key(0), shape, dtype)


def product(function: Callable, fixed, states) -> tuple[Callable, tuple]:
    """(Jacobian at `states`)^T u, with u = `function(fixed, states)`: function and arguments."""

    @jax.jit
    def linearize(fixed, states):
        return jax.vjp(lambda z: function(fixed, z), states)

    value, pullback = linearize(fixed, states)
    return lambda pullback, u: pullback(u), (pullback, value)


def measure(config, batch_size: int, repeats: int, applications: int) -> dict:
    """Everything about the cell of a config; see the module."""
    problem, calls = cell_problem(config, batch_size), {}

    def add(name, function, args):
        loop = in_loop(function, applications)
        calls[name] = lambda: loop(*args)

    timed = parts(config, problem)
    timed = {name: entry for name, entry in timed.items() if jax.tree.leaves(entry[1][1])}
    for name, (function, args) in timed.items():
        add(f"{name}/forward", function, args)
        add(f"{name}/pullback", *product(function, *args))
    times = measure_in_turn({**calls, PAIR: convolution_pair()}, repeats)
    pair = times.pop(PAIR)
    work = forward_work(config, batch_size, CELL_PARTS)
    report = {
        "benchmark": "cell",
        "config": config.name,
        "machine": describe_machine(),
        "precision": config.precision,
        "batch": batch_size,
        "pair_seconds": pair._asdict(),
        "multiply_adds": work.flops / 2,
    }
    for way in ("forward", "pullback"):
        seconds = {
            name: [figure / applications for figure in times[f"{name}/{way}"][:3]] for name in timed
        }
        medians = {name: figures[0] for name, figures in seconds.items()}
        whole = medians[WHOLE]
        medians[FUSION] = whole - medians[BLOCKS] - medians.get(POST, 0.0)
        medians[OTHERS] = whole - medians[CONVOLUTIONS] - medians[NORMS]
        report[way] = {
            "seconds": medians,
            "quartiles": {name: figures[1:] for name, figures in seconds.items()},
            "in_pairs": whole / pair.median,
            "flops_per_second": work.flops / whole,
        }
    return report


def table(report: dict) -> str:
    """The report, to read."""
    forward, pullback = (report[way]["seconds"] for way in ("forward", "pullback"))
    rows = []
    for name in (WHOLE, BLOCKS, FUSION, POST, CONVOLUTIONS, NORMS, OTHERS):
        if name in forward:
            cells = [name]
            for seconds in (forward, pullback):
                cells += [f"{1e3 * seconds[name]:.3f}", f"{seconds[name] / seconds[WHOLE]:.1%}"]
            rows.append(cells)
    spread = ["quartiles of the whole"]
    rates, ratios = ["GFLOP/s of the whole"], ["in convolution pairs"]
    for way in ("forward", "pullback"):
        low, high = (1e3 * figure for figure in report[way]["quartiles"][WHOLE])
        spread += [f"{low:.3f} to {high:.3f}", ""]
        rates += [f"{report[way]['flops_per_second'] / 1e9:.1f}", ""]
        ratios += [f"{report[way]['in_pairs']:.3f}", ""]
    title = f"{report['config']}, batch {report['batch']}, {report['precision']}"
    head = (title, "forward, ms", "share", "pullback, ms", "share")
    return markdown(head, [*rows, spread, rates, ratios]) + f"\n{report['machine']}"


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints the table, writes the file."""
    del argv
    config = forced(values.config, precision=values.precision)
    report = measure(config, values.batch, values.repeats, values.applications)
    print(table(report))
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    define_flags(values, solves=())
    flags.DEFINE_integer(
        "applications", 10, "Applications in a timed loop.", lower_bound=1, flag_values=values
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
