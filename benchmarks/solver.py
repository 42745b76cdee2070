"""The cost of the solvers themselves, compared with the cell that they evaluate.

    python -m benchmarks.solver --config=configs/cifar10_large.py --batch=8

The first table times each solver on an affine map of the size of the config's state, so nearly all
of the time is the solver's: per step, and as a share of one evaluation of the config's cell. Rows
differ from the first one of their solver in one setting.

The second table divides a training step into the cell and its pullback, the solvers' own work, and
all that is outside the solves. It is traced while the step runs as in training.
"""

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from benchmarks import hlo
from benchmarks.report import define_flags, markdown, write_json
from benchmarks.timing import PAIR, convolution_pair, describe_machine, in_loop, measure_in_turn
from benchmarks.trace import kernels, operation_name, share_out, trace
from benchmarks.train_step import compile_step
from benchmarks.workload import cell_problem, forced_by_flags
from mdeq_jax import hardware
from mdeq_jax.layers import group_norm
from mdeq_jax.models import apply_cell
from mdeq_jax.solvers import SOLVERS
from mdeq_jax.tree import ravel_batch

APPLICATIONS = 5  # of the cell in a timed loop
TRACED_STEPS = 2
WAYS = ("forward", "backward")
EVALUATIONS = ("cell", "pullback")  # in their solves


def variants(batch: int, features: int, steps: int) -> list[dict]:
    """The rows of the first table: solver, its options, `[B, D]` and step count."""
    base = {"batch": batch, "features": features, "steps": steps, "options": {}}
    broyden = {"solver": "broyden", **base}
    ours = [broyden | {"options": {"pallas": True}}] if hardware.target().platform == "gpu" else []
    return [
        broyden,
        *ours,
        broyden | {"options": {"history_dtype": "bfloat16"}},
        broyden | {"steps": max(1, steps // 2)},
        broyden | {"steps": 2 * steps},
        broyden | {"features": max(1, features // 4)},
        broyden | {"batch": max(1, batch // 4)},
        {"solver": "anderson", **base},
        {"solver": "anderson", **base, "options": {"m": 3}},
        {"solver": "fixed_point_iteration", **base},
    ]


def affine_solve(variant: dict):
    """A compiled solve of an affine map that takes all of its steps: the function and its input."""
    shape = variant["batch"], variant["features"]
    slope = jnp.linspace(-0.95, 0.95, shape[1])[None, :]
    offset = jax.random.normal(jax.random.key(0), shape)
    solver = partial(
        SOLVERS[variant["solver"]], max_steps=variant["steps"], tol=0.0, **variant["options"]
    )

    @jax.jit
    def solve(slope, offset, start):
        solution = solver(lambda z: slope * z + offset, start)
        return solution.z, solution.nfe

    start = jnp.zeros(shape)  # an argument, as XLA takes seconds to fold a large constant
    return lambda: solve(slope, offset, start)


def _cell(problem):
    """The cell as `in_loop` takes it."""
    return lambda fixed, z: problem.f(fixed[0], z, fixed[1])


def measure_steps(problem, repeats: int, steps: int) -> dict:
    """The first table: solvers on affine maps compared with one evaluation of the cell."""
    flat, _ = ravel_batch(problem.z)
    evaluate = in_loop(_cell(problem), APPLICATIONS)
    rows = variants(*flat.shape, steps)
    solves = {i: affine_solve(row) for i, row in enumerate(rows)}
    calls = {"cell": lambda: evaluate((problem.weights, problem.x), problem.z), **solves}
    times = measure_in_turn(calls, repeats)
    cell = times["cell"].median / APPLICATIONS
    for i, row in enumerate(rows):
        taken = int(solves[i]()[1]) - 1
        row["steps_taken"] = taken
        row["step_seconds"] = [figure / max(taken, 1) for figure in times[i][:3]]
        # Of an evaluation of a cell with as large a state.
        as_large = cell * row["batch"] * row["features"] / flat.size
        row["of_cell"] = row["step_seconds"][0] / as_large
    return {"cell_seconds": cell, "rows": rows}


def measure_share(config, batch_size: int, repeats: int) -> dict:
    """The second table; see the module."""
    take, _, compiled = compile_step(config, batch_size)
    times = measure_in_turn({"step": take, PAIR: convolution_pair()}, repeats)
    scalars = jax.device_get(take().scalars)
    spans, seconds = trace(take, TRACED_STEPS)
    parts = share_out(spans, step_parts(*hlo.computations(compiled.as_text())))
    return {
        "step_seconds": times["step"]._asdict(),
        "step_in_pairs": times["step"].median / times[PAIR].median,
        "nfe": {way: int(scalars[f"{way}/nfe"][0]) for way in WAYS},
        "traced_seconds": seconds / TRACED_STEPS,
        "parts_seconds": {part: taken / TRACED_STEPS for part, taken in parts.items()},
        "solver_share": sum(parts[part] for part in (*WAYS, "buffers")) / seconds,
    }


def step_parts(program: dict, entry: str) -> dict[str, set[str]]:
    """What the kernels of a training step are for.

    Args:
        program: the computations of the compiled step, from `hlo.computations`.
        entry: name of its entry computation.

    Returns:
        Names of instructions. "forward" and "backward": of the two solves, without the cell.
        "buffers": those that fill the solvers' states before the first step. "cell" and
        "pullback": of the two solves, from the cell. "rest": those outside the solves.

    Raises:
        RuntimeError: there are not two loops that evaluate the cell.
    """

    def of_cell(kernel):
        return apply_cell.__name__ in operation_name(kernel)

    def evaluates_cell(kernel):
        """Unlike the loops over the taps of a kernel's gradient, a whole cell has norms."""
        return of_cell(kernel) and group_norm.__name__ in operation_name(kernel)

    def names(kernels):
        return {kernel.name for kernel in kernels}

    inside = {body: list(kernels(program, body)) for body in hlo.loops(program, entry)}
    solves = [body for body in inside if any(map(evaluates_cell, inside[body]))]
    if len(solves) != len(WAYS):
        raise RuntimeError(
            f"The step has {len(solves)} loops that evaluate the cell where 2 are expected, one a "
            "solve: its parts cannot be distinguished. Gradients without a backward solve have no "
            "such loop."
        )
    cells = [names(filter(of_cell, inside[body])) for body in solves]
    own = [names(inside[body]) - cell for body, cell in zip(solves, cells)]
    lines = {line.name: line for line in program[entry]}
    carried = [lines[line.operands[0]] for line in lines.values() if line.called("body") in solves]
    buffers = {name for line in carried for name in line.operands if "broadcast" in name}
    others = [names(inside[body]) for body in inside if body not in solves]
    rest = names(kernels(program, entry)).union(*others) - buffers
    return {
        **dict(zip(WAYS, own)),
        "buffers": buffers,
        **dict(zip(EVALUATIONS, cells)),
        "rest": rest,
    }


def measure(config, batch_size: int, repeats: int) -> dict:
    """Everything about the solvers of a config that `forced` made; see the module."""
    problem = cell_problem(config, batch_size)
    return {
        "benchmark": "solver",
        "config": config.name,
        "machine": describe_machine(),
        "precision": config.precision,
        "batch": batch_size,
        **measure_steps(problem, repeats, config.solver.forward.max_steps),
        "training_step": measure_share(config, batch_size, repeats),
    }


def table(report: dict) -> str:
    """The report, to read."""
    rows = []
    for row in report["rows"]:
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        median, low, high = (1e3 * figure for figure in row["step_seconds"])
        rows.append(
            (
                row["solver"],
                options,
                row["batch"],
                f"{row['features']:,}",
                row["steps_taken"],
                f"{median:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{row['of_cell']:.1%}",
            )
        )
    head = ("solver", "", "batch", "D", "steps", "ms a step", "quartiles", "of a cell")
    steps = markdown(head, rows)
    step = report["training_step"]
    traced, nfe = step["traced_seconds"], step["nfe"]
    labels = {
        "forward": "the forward solver",
        "backward": "the backward solver",
        "buffers": "filling their states",
        "cell": f"the cell in the forward solve, {nfe['forward'] - 1} evaluations",
        "pullback": f"its pullback in the backward solve, {nfe['backward']} products",
        "rest": "outside the solves",
    }
    parts = [(labels[part], taken) for part, taken in step["parts_seconds"].items()]
    # On CPUs convolutions may run on threads of which the profiler does not tell.
    parts.append(("not reported by the profiler", traced - sum(step["parts_seconds"].values())))
    shares = markdown(
        ("of a training step, traced", "ms", "share"),
        [(label, f"{1e3 * taken:.1f}", f"{taken / traced:.1%}") for label, taken in parts],
    )
    clock = (
        f"Both solvers: {step['solver_share']:.1%} of {1e3 * traced:.1f} ms. "
        f"A step that is not traced takes {1e3 * step['step_seconds']['median']:.1f} ms."
    )
    return (
        f"{report['config']}, batch {report['batch']}, {report['precision']}, "
        f"{report['machine']}\nOne evaluation of the cell: {1e3 * report['cell_seconds']:.3f} ms\n"
        f"{steps}\n\n{shares}\n{clock}"
    )


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints the tables, writes the file."""
    del argv
    report = measure(forced_by_flags(values), values.batch, values.repeats)
    print(table(report))
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    define_flags(values)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
