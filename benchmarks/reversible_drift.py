"""The rounding error of the reversible gradient in float32, by steps and relaxation.

    python -m benchmarks.reversible_drift --config=configs/digits.py --workdir=runs/digits

It compares the gradient of `reversible` in float32 with that of the same iteration in float64. The
drift, which training logs, is the distance from the start at which the backward pass ended.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks.gradients import candidate_model, flatten, load_problem
from mdeq_jax.implicit import BackwardStats
from mdeq_jax.models import ForwardOptions
from mdeq_jax.runtime import command_line


def cast(tree, dtype):
    """The arrays of a tree in another type."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def gradient_of(model, problem, dtype):
    """`(params, stats, steps) -> gradients` of the mean loss, and the statistics."""
    images = jnp.asarray(problem.images, dtype)
    fixed = cast(problem.variables["batch_stats"], dtype)

    def loss(params, stats, steps):
        variables = {"params": params, "batch_stats": fixed}
        options = ForwardOptions(step_budget=steps, backward_stats=stats)
        out = model.apply(variables, images, forward=options)
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, problem.labels)
        return jnp.mean(losses)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def measure(problem, beta: float, steps: list[int]) -> list[tuple[float, float]]:
    """Relative error of the float32 gradient and the largest drift, for each number of steps."""
    config = problem.config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps = max(steps)
    model = candidate_model(config, "reversible", {"beta": beta})
    results = {}
    for dtype in (jnp.float64, jnp.float32):
        gradient = gradient_of(model, problem, dtype)
        params = cast(problem.variables["params"], dtype)
        for n in steps:
            grads, stats = gradient(params, BackwardStats.zeros(len(problem.labels)), jnp.int32(n))
            results[dtype, n] = flatten(grads), float(np.max(stats.rel_residual))
    return [
        (
            float(np.linalg.norm(results[jnp.float32, n][0] - results[jnp.float64, n][0]))
            / float(np.linalg.norm(results[jnp.float64, n][0])),
            results[jnp.float32, n][1],
        )
        for n in steps
    ]


def main(argv) -> None:
    """Measures and prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_x64", True)
    problem = load_problem(_CONFIG.value, _EXAMPLES.value, workdir=_WORKDIR.value)
    steps, betas = [[kind(v) for v in flag.value] for kind, flag in ((int, _STEPS), (float, _BETA))]
    columns = [measure(problem, beta, steps) for beta in betas]
    print("| steps | " + " | ".join(f"beta = {beta:g}" for beta in betas) + " |")
    print("|---" * (len(betas) + 1) + "|")
    for n, row in zip(steps, zip(*columns)):
        print(f"| {n} | " + " | ".join(f"{error:.0e} ({drift:.0e})" for error, drift in row) + " |")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The config.", lock_config=True)
    _WORKDIR = command_line.define_path("workdir", "Directory that was trained or converted.")
    _EXAMPLES = flags.DEFINE_integer("examples", 32, "Evaluation examples in the batch.")
    _STEPS = flags.DEFINE_list("steps", ["5", "10", "15", "20", "30"], "Numbers of steps.")
    _BETA = flags.DEFINE_list("beta", ["0.3", "0.5", "0.7", "0.8", "0.9"], "Relaxations.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
