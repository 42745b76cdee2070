"""Every gradient of a trained network compared with the exact one: error, time, memory.

    python -m benchmarks.gradients --config=configs/digits.py --workdir=runs/digits
    python -m benchmarks.gradients --config=configs/cifar10_tiny.py \\
        --torch_file=mdeq_tiny_cifar10.pkl --config.data.data_dir=/data/tfds --examples=32

The gradient is that of the mean loss of evaluation examples with respect to the parameters of stem
and cell. The exact one is computed in float64 from an equilibrium and an adjoint equation that are
solved to 1e-11; the others in float32 with the solvers of the config. Writes NAME.json to
`--output`, and a picture of all such files there to `--plot`.
"""

import functools
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.data import EvalLoader, load_dataset
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.implicit import BackwardStats, ift
from mdeq_jax.models import ForwardOptions, build_model
from mdeq_jax.runtime import command_line
from mdeq_jax.solvers import Status, broyden

COMPARED = ("stem", "cell")
# Name, gradient, its settings. Where None stands for the steps, they are those of the config.
CANDIDATES = (
    ("ift at z*", "ift", {"linearize_at": "z_star"}),
    ("ift at f(z*)", "ift", {"linearize_at": "f_z_star"}),
    ("phantom k=5 tau=0.5", "phantom", {"steps": 5, "tau": 0.5}),
    ("phantom k=5 tau=1", "phantom", {"steps": 5, "tau": 1.0}),
    ("neumann k=5 tau=0.5", "neumann", {"steps": 5, "tau": 0.5}),
    ("neumann k=5 tau=1", "neumann", {"steps": 5, "tau": 1.0}),
    ("one_step", "one_step", {}),
    ("shine", "shine", {}),
    ("shine refined by 5", "shine", {"refine_steps": 5}),
    ("reversible beta=0.5", "reversible", {"beta": 0.5}),
    ("unroll", "unroll", {}),
    ("unroll remat", "unroll", {"remat": True}),
)


class Problem(NamedTuple):
    """A trained network and the examples that its gradient is taken on.

    Attributes:
        config: the whole config.
        variables: Flax variables, float32.
        images: `[N, H, W, 3]` normalised, float32.
        labels: `[N]`.
    """

    config: object
    variables: dict
    images: np.ndarray
    labels: np.ndarray


def load_problem(config, examples: int, *, workdir: str = "", torch_file: str = "") -> Problem:
    """The network of a work directory or of a PyTorch file, and evaluation examples.

    Raises:
        ValueError: not exactly one of `workdir` and `torch_file`.
    """
    if bool(workdir) == bool(torch_file):
        raise ValueError("Give the network by --workdir or by --torch_file, and not by both.")
    dataset = load_dataset(config.data)
    batch = next(iter(EvalLoader(dataset, min(examples, dataset.num_eval))))
    if torch_file:
        variables = convert_state_dict(load_torch_file(Path(torch_file)), config)
    else:
        like = jax.eval_shape(build_model(config).init, jax.random.key(0), batch["image"][:1])
        with Checkpoints(Path(workdir)) as checkpoints:
            variables, _ = checkpoints.restore_variables(like)
    return Problem(config, variables, np.asarray(batch["image"]), np.asarray(batch["label"]))


def gradient_of(model, problem: Problem, dtype=jnp.float32):
    """A function without arguments that are not arrays: `(params, stats) -> (gradients, solution)`.

    The gradients are those of the parameters in `COMPARED`, and the backward statistics.
    """
    images = jnp.asarray(problem.images, dtype)
    fixed = jax.tree.map(lambda a: jnp.asarray(a, dtype), problem.variables["batch_stats"])

    def loss(params, stats):
        out = model.apply(
            {"params": params, "batch_stats": fixed},
            images,
            forward=ForwardOptions(backward_stats=stats),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, problem.labels)
        return jnp.mean(losses), out.solution

    def gradient(params, stats):
        gradients, solution = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, stats)
        return gradients, solution

    return jax.jit(gradient)


def flatten(gradients: dict) -> np.ndarray:
    """One float64 vector of the gradients of stem and cell."""
    leaves = jax.tree.leaves({name: gradients[name] for name in COMPARED if name in gradients})
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])


def exact_gradient(problem: Problem, max_steps: int, tol: float = 1e-11) -> tuple:
    """The gradient in float64 at the equilibrium, and the largest residuals of both solves."""
    solver = functools.partial(broyden, max_steps=max_steps, tol=tol)
    model = build_model(problem.config).clone(
        f_solver=solver,
        gradient=functools.partial(ift, b_solver=solver, linearize_at="f_z_star"),
    )
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), problem.variables["params"])
    compute = gradient_of(model, problem, jnp.float64)
    (gradients, stats), solution = compute(params, BackwardStats.zeros(len(problem.labels)))
    forward, backward = solution.rel_residual, stats.rel_residual
    return flatten(gradients), float(jnp.max(forward)), float(jnp.max(backward))


def candidate_model(config, name: str, settings: dict):
    """The config's network with another gradient."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for field in config.gradient:
            config.gradient[field] = settings.get(field)
        config.gradient.name = name
    return build_model(config)


def compare(problem: Problem, exact: np.ndarray, candidates=CANDIDATES, repeats: int = 5) -> list:
    """Errors, times and memory of the candidates, one dict each.

    The candidates take turns, so that other load on the machine meets all alike.
    """
    params = jax.tree.map(jnp.asarray, problem.variables["params"])
    stats = BackwardStats.zeros(len(problem.labels))
    rows, steps = [], []
    for label, name, settings in candidates:
        step = gradient_of(candidate_model(problem.config, name, settings), problem)
        step = step.lower(params, stats).compile()
        (gradients, backward), solution = step(params, stats)
        ours = flatten(gradients)
        status = np.asarray(solution.status)
        rows.append(
            {
                "gradient": label,
                "cosine": float(ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact)),
                "relative_error": float(np.linalg.norm(ours - exact) / np.linalg.norm(exact)),
                "forward_nfe": int(solution.nfe),
                "forward_unconverged": float(np.mean(status != Status.CONVERGED)),
                "backward_nfe": float(backward.nfe),
                "backward_rel_residual": float(np.median(backward.rel_residual)),
                "memory_bytes": step.memory_analysis().temp_size_in_bytes,
            }
        )
        steps.append(step)
    wall, cpu = [[] for _ in steps], [[] for _ in steps]
    for _ in range(repeats):
        for i, step in enumerate(steps):
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(step(params, stats))
            wall[i].append(time.perf_counter() - start)
            cpu[i].append(time.process_time() - start_cpu)
    for row, seconds, cpu_seconds in zip(rows, wall, cpu):
        row["seconds"] = statistics.median(seconds)
        row["cpu_seconds"] = statistics.median(cpu_seconds)
    return rows


def table(rows: list) -> str:
    """A Markdown table; time and memory are relative to those of the first row."""
    lines = [
        "| gradient | cosine | relative error | products, forward + backward | time | memory |",
        "|---|---|---|---|---|---|",
    ]
    first = rows[0]
    for row in rows:
        lines.append(
            f"| {row['gradient']} | {row['cosine']:.5f} | {row['relative_error']:.2%} "
            f"| {row['forward_nfe']} + {row['backward_nfe']:.0f} "
            f"| {row['seconds'] / first['seconds']:.2f} "
            f"| {row['memory_bytes'] / first['memory_bytes']:.2f} |"
        )
    return "\n".join(lines)


def plot(path: Path, reports: list) -> None:
    """Relative error and direction against time: one column a network, one marker a gradient."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 5 * len(reports), 8), layout="constrained")
    panels = figure.subplots(2, len(reports), squeeze=False, sharex="col")
    styles = [(f"C{i % 10}", "o" if i < 10 else "s") for i in range(len(CANDIDATES))]
    for (top, bottom), report in zip(panels.T, reports):
        rows = report["rows"]
        for row, (colour, marker) in zip(rows, styles):
            seconds = row["seconds"] / rows[0]["seconds"]
            area = 20 + 60 * row["memory_bytes"] / rows[0]["memory_bytes"]
            style = {"s": area, "color": colour, "marker": marker, "alpha": 0.7}
            top.scatter(seconds, row["relative_error"], label=row["gradient"], **style)
            bottom.scatter(seconds, max(1 - row["cosine"], 1e-8), **style)
        top.set_title(
            f"{report['name']}: {report['examples']} evaluation images\n{report['device']}",
            fontsize=10,
        )
        bottom.set_xlabel(f"time of loss and gradient, that of {rows[0]['gradient']!r} = 1")
        bottom.set_xlim(left=0)
        for axis, label in (
            (top, "relative error |g - exact| / |exact|"),
            (bottom, "1 - cosine between g and the exact gradient"),
        ):
            axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    figure.suptitle(
        "Gradients of trained networks compared with the exact one (float64, tight solves)\n"
        "lower is better, left is faster; the larger the marker, the more temporary memory"
    )
    legend = figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center")
    for handle in legend.legend_handles:
        handle.set_sizes([50])
    figure.savefig(path, dpi=110)


def main(argv) -> None:
    """Measures, prints the table, writes the files."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_x64", True)
    config, output = _CONFIG.value, Path(_OUTPUT.value)
    problem = load_problem(
        config, _EXAMPLES.value, workdir=_WORKDIR.value, torch_file=_TORCH_FILE.value
    )
    exact, forward, backward = exact_gradient(problem, _EXACT_STEPS.value)
    print(
        f"{config.name}: exact gradient on {len(problem.labels)} examples in float64, "
        f"norm {np.linalg.norm(exact):.3e}; largest residuals {forward:.1e} forward, "
        f"{backward:.1e} backward"
    )
    if not max(forward, backward) < 1e-8:
        print("WARNING: these solves did not converge; raise --exact_steps.")
    rows = compare(problem, exact, repeats=_REPEATS.value)
    print(table(rows))
    report = {
        "name": config.name,
        "examples": len(problem.labels),
        "device": f"{jax.devices()[0].device_kind}, JAX {jax.__version__}",
        "exact_residuals": [forward, backward],
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{config.name}.json").write_text(json.dumps(report, indent=2) + "\n")
    reports = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"), reverse=True)]
    picture = Path(_PLOT.value or output / "gradients.png")
    plot(picture, reports)
    print(f"Wrote {output / config.name}.json and {picture}.")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The config.", lock_config=True)
    _WORKDIR = command_line.define_path("workdir", "Directory that was trained or converted.", "")
    _TORCH_FILE = command_line.define_path(
        "torch_file", "PyTorch checkpoint, instead of --workdir.", ""
    )
    _EXAMPLES = flags.DEFINE_integer("examples", 64, "Evaluation examples in the batch.")
    _EXACT_STEPS = flags.DEFINE_integer("exact_steps", 150, "Most steps of the exact solves.")
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repetitions; the median is reported.")
    _OUTPUT = command_line.define_path("output", "Folder for the results.", "runs/gradients")
    _PLOT = command_line.define_path(
        "plot", "Picture to write; by default OUTPUT/gradients.png.", ""
    )
    flags.mark_flag_as_required("config")
    app.run(main)
