"""The exact gradient with truncated solves: its point of linearisation and its replacements.

    python -m benchmarks.truncated_solves --config=configs/digits.py --workdir=runs/digits

Like `benchmarks.gradients`, with the forward and the adjoint solve limited to a few steps. It
covers every point at which "ift" can be linearised, and every replacement for an adjoint solution
that was not found.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks.gradients import candidate_model, exact_gradient, flatten, gradient_of, load_problem
from mdeq_jax.implicit import BackwardStats
from mdeq_jax.implicit.attach import LINEARIZE_AT
from mdeq_jax.implicit.fallback import UNCONVERGED
from mdeq_jax.runtime import command_line
from mdeq_jax.solvers import Status


def with_steps(problem, steps: int):
    """The problem, both of whose solvers make at most `steps` steps."""
    config = problem.config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps = config.solver.backward.max_steps = steps
    return problem._replace(config=config)


def compare(problem, exact: np.ndarray, steps: int) -> list[dict]:
    """One dict for each point and rule."""
    problem, rows = with_steps(problem, steps), []
    params = jax.tree.map(jnp.asarray, problem.variables["params"])
    for point in LINEARIZE_AT:
        for rule in UNCONVERGED:
            settings = {"linearize_at": point, "unconverged": rule}
            model = candidate_model(problem.config, "ift", settings)
            stats = BackwardStats.zeros(len(problem.labels))
            (gradients, stats), solution = gradient_of(model, problem)(params, stats)
            ours = flatten(gradients)
            rows.append(
                {
                    "steps": steps,
                    "linearize_at": point,
                    "unconverged": rule,
                    "forward_residual": float(np.median(solution.rel_residual)),
                    "forward_failed": float(np.mean(solution.status != Status.CONVERGED)),
                    "backward_failed": float(np.mean(stats.status != Status.CONVERGED)),
                    "norm": float(np.linalg.norm(ours) / np.linalg.norm(exact)),
                    "cosine": float(ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact)),
                    "relative_error": float(np.linalg.norm(ours - exact) / np.linalg.norm(exact)),
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """A Markdown table."""
    lines = [
        "| steps | forward residual | adjoint solves that failed | at | unconverged "
        "| norm relative to the exact | cosine | relative error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['steps']} | {row['forward_residual']:.1e} | {row['backward_failed']:.0%} "
            f"| {row['linearize_at']} | {row['unconverged']} | {row['norm']:.2f} "
            f"| {row['cosine']:.3f} | {row['relative_error']:.1%} |"
        )
    return "\n".join(lines)


def main(argv) -> None:
    """Measures and prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_x64", True)
    problem = load_problem(_CONFIG.value, _EXAMPLES.value, workdir=_WORKDIR.value)
    exact, forward, backward = exact_gradient(problem, _EXACT_STEPS.value)
    print(
        f"Exact gradient on {len(problem.labels)} examples in float64: largest residuals "
        f"{forward:.1e} forward, {backward:.1e} backward."
    )
    measure = functools.partial(compare, problem, exact)
    print(table([row for steps in _STEPS.value for row in measure(int(steps))]), flush=True)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The config.", lock_config=True)
    _WORKDIR = command_line.define_path("workdir", "Directory that was trained or converted.")
    _EXAMPLES = flags.DEFINE_integer("examples", 64, "Evaluation examples in the batch.")
    _STEPS = flags.DEFINE_list("steps", ["3", "5", "8"], "Most steps of either solve.")
    _EXACT_STEPS = flags.DEFINE_integer("exact_steps", 150, "Most steps of the exact solves.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
