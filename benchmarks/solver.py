"""What the solvers themselves cost, beside the cell that they evaluate.

    python -m benchmarks.solver --config=configs/cifar10_large.py --batch=8

The first table: each solver on an affine map of the size of the config's state, so that nearly all
of the time is the solver's, per step and as a share of one evaluation of the config's cell. Rows
differ from the first of their solver in one thing.

The second: what of a training step is neither the cell nor its pullback. The solvers' share is
told in two ways: the time of both solves on the cell less that of their evaluations, each timed by
itself in a compiled loop (a difference of large numbers, hence noisy), and that of the same solvers
on affine maps of the same size (an upper limit, as the maps take time too).
"""

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from benchmarks.report import define_flags, markdown, write_json
from benchmarks.timing import PAIR, convolution_pair, describe_machine, in_loop, measure_in_turn
from benchmarks.train_step import compile_step
from benchmarks.workload import cell_problem, forced_by_flags
from mdeq_jax.implicit import solve_adjoint
from mdeq_jax.models.build import build_solver
from mdeq_jax.solvers import SOLVERS
from mdeq_jax.tree import ravel_batch

APPLICATIONS = 5  # of the cell in a timed loop


def variants(batch: int, features: int, steps: int) -> list[dict]:
    """The rows of the first table: solver, its options, `[B, D]` and step count."""
    base = {"batch": batch, "features": features, "steps": steps, "options": {}}
    broyden = {"solver": "broyden", **base}
    return [
        broyden,
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
    """The first table: solvers on affine maps beside one evaluation of the cell."""
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


def measure_share(config, problem, repeats: int) -> dict:
    """The second table; see the module."""
    batch = problem.z[0].shape[0]
    f_solver = build_solver(config.solver.forward, "solver.forward")
    b_solver = build_solver(config.solver.backward, "solver.backward")

    @jax.jit
    def forward(weights, start, x):
        flat, unravel = ravel_batch(start)
        solution = f_solver(lambda z: ravel_batch(problem.f(weights, unravel(z), x))[0], flat)
        return solution.z, solution.nfe

    @jax.jit
    def backward(weights, z, x):
        u, solution = solve_adjoint(problem.f, weights, x, z, z, b_solver=b_solver)
        return u, solution.nfe

    @jax.jit
    def linearize(weights, z, x):
        return jax.vjp(lambda z: problem.f(weights, z, x), z)[1]

    args = problem.weights, problem.z, problem.x
    start = problem.weights, jax.tree.map(jnp.zeros_like, problem.z), problem.x
    pullback = linearize(*args)
    evaluate = in_loop(_cell(problem), APPLICATIONS)
    product = in_loop(lambda pullback, u: pullback(u), APPLICATIONS)
    take, _, _ = compile_step(config, batch)
    shape = dict(zip(("batch", "features"), ravel_batch(problem.z)[0].shape))
    affine = {
        f"affine {way}": affine_solve(
            {"solver": solver.name, "steps": solver.max_steps, "options": {}, **shape}
        )
        for way, solver in config.solver.items()
    }
    times = measure_in_turn(
        {
            **affine,
            "step": take,
            "forward": lambda: forward(*start),
            "backward": lambda: backward(*args),
            "linearize": lambda: linearize(*args),
            "cell": lambda: evaluate((problem.weights, problem.x), problem.z),
            "pullback": lambda: product(pullback, problem.z),
            PAIR: convolution_pair(),
        },
        repeats,
    )
    medians = {name: timing.median for name, timing in times.items()}
    cell, pull = medians["cell"] / APPLICATIONS, medians["pullback"] / APPLICATIONS
    nfe = int(forward(*start)[1]), int(backward(*args)[1])
    own = {
        "forward": medians["forward"] - nfe[0] * cell,
        "backward": medians["backward"] - medians["linearize"] - nfe[1] * pull,
    }
    solvers = sum(own.values())
    evaluations = nfe[0] * cell + medians["linearize"] + nfe[1] * pull
    return {
        "step_seconds": times["step"]._asdict(),
        "step_in_pairs": medians["step"] / medians[PAIR],
        "nfe": nfe,
        "cell_seconds": cell,
        "pullback_seconds": pull,
        "solve_seconds": {name: medians[name] for name in ("forward", "backward")},
        "solver_seconds": own,
        "solver_share": solvers / medians["step"],
        "affine_share": sum(medians[name] for name in affine) / medians["step"],
        "evaluations_share": evaluations / medians["step"],
        "rest_share": 1 - (solvers + evaluations) / medians["step"],
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
        "training_step": measure_share(config, problem, repeats),
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
    seconds, own, solve = step["step_seconds"], step["solver_seconds"], step["solve_seconds"]
    shares = markdown(
        ("of a training step", "ms", "share"),
        [
            ("the step", f"{1e3 * seconds['median']:.1f}", "100.0%"),
            *(
                (
                    f"{way} solve, {nfe} evaluations",
                    f"{1e3 * solve[way]:.1f}",
                    f"{solve[way] / seconds['median']:.1%}",
                )
                for way, nfe in zip(("forward", "backward"), step["nfe"])
            ),
            ("cell and pullback in both", "", f"{step['evaluations_share']:.1%}"),
            (
                "solvers, by difference",
                f"{1e3 * sum(own.values()):.1f}",
                f"{step['solver_share']:.1%}",
            ),
            ("solvers, on affine maps", "", f"{step['affine_share']:.1%}"),
            ("everything outside the solves", "", f"{step['rest_share']:.1%}"),
        ],
    )
    return (
        f"{report['config']}, batch {report['batch']}, {report['precision']}, "
        f"{report['machine']}\nOne evaluation of the cell: {1e3 * report['cell_seconds']:.3f} ms\n"
        f"{steps}\n\n{shares}"
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
