"""How the solves of evaluation examples converge, step by step, and the picture of it."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import Dataset, EvalLoader
from mdeq_jax.implicit import GRADIENTS, solve_adjoint
from mdeq_jax.implicit.binding import settings_of
from mdeq_jax.solvers import build_solver, fixed_point_iteration
from mdeq_jax.tasks import Task
from mdeq_jax.tasks.task import display_name
from mdeq_jax.viz.convergence import plot_convergence

MAX_TRACED = 1000


class ConvergenceTraces(NamedTuple):
    """Relative residual after each step, with no tolerance to stop at.

    Attributes:
        forward: `[steps, N]` of the equilibrium.
        backward: `[steps, N]` of the adjoint equation of each example's own loss.
        forward_label: names the solver.
        backward_label: names the gradient and its solver.
    """

    forward: np.ndarray
    backward: np.ndarray
    forward_label: str
    backward_label: str


def convergence_traces(model, variables, task: Task, dataset: Dataset, config) -> ConvergenceTraces:
    """Solves evaluation examples with all the steps that the config allows, on one device.

    The first `MAX_TRACED` of them: enough for the picture, and no second evaluation.
    """
    forward = build_solver(config.solver.forward, "solver.forward", pallas=config.pallas)
    forward = partial(forward, tol=0.0)
    backward, label = _backward_solver(model, config)
    linearize_at = settings_of(model.gradient).get("linearize_at", "z_star")

    @jax.jit
    def traces(variables, batch):
        images = batch["image"]
        problem = model.fixed_point_problem(variables, task.prepare(images))

        def loss(z):
            logits = task.restore(model.apply(variables, z, method="read_out"), images)
            return task.figures(logits, batch)["loss"]

        z, solution = model.solve(problem, f_solver=forward)
        # Linearised where training does it.
        point = z if linearize_at == "f_z_star" else problem.unravel(solution.z)
        f, params, x, _ = problem
        _, adjoint = solve_adjoint(f, params, x, point, jax.grad(loss)(z), b_solver=backward)
        return solution.rel_trace, adjoint.rel_trace

    batch_size = (config.eval.batch_size or config.train.batch_size) // jax.device_count()
    loader = EvalLoader(dataset, batch_size, num_workers=config.data.num_workers)
    columns = []
    for batch in islice(loader, -(-MAX_TRACED // batch_size)):
        keep = batch["mask"] > 0
        batch = jax.tree.map(jnp.asarray, batch)
        columns.append([np.asarray(t)[:, keep] for t in traces(variables, batch)])
    forward_trace, backward_trace = (np.concatenate(t, axis=1) for t in zip(*columns))
    return ConvergenceTraces(
        forward_trace,
        backward_trace,
        f"{config.solver.forward.name}, {config.solver.forward.max_steps} steps",
        label,
    )


def _backward_solver(model, config):
    """The solver that the gradient amounts to, without a tolerance, and a label for it."""
    name = config.gradient.name
    info = GRADIENTS[name]
    if info.is_series:
        # A truncated gradient is a partial sum of the damped iteration of the adjoint equation.
        settings = {"steps": 1, "tau": 1.0, **settings_of(model.gradient)}  # one_step has neither
        terms, tau = settings["steps"], settings["tau"]
        solver = partial(fixed_point_iteration, max_steps=terms, tau=tau, tol=0.0)
        return solver, f"{name}, {terms} terms, tau = {tau}"
    settings = config.solver.backward
    solver = partial(build_solver(settings, "solver.backward", pallas=config.pallas), tol=0.0)
    label = f"{settings.name}, {settings.max_steps} steps"
    # The other gradients solve nothing; the adjoint equation is still there to be solved.
    return solver, f"{name}, {label}" if info.is_exact else f"{label} (training uses {name!r})"


def plot(path: Path, config, model, variables, task: Task, dataset: Dataset, score: float) -> None:
    """Writes `convergence.png` of a trained network.

    Args:
        path: file to write.
        config: the whole config.
        model: of `build_model`.
        variables: Flax variables on the host.
        task: of `build_task`.
        dataset: its evaluation split is solved.
        score: the task's headline figure, for the title.
    """
    traces = convergence_traces(model, variables, task, dataset, config)
    uses_tol = config.solver.forward.stop_mode == "rel"
    exact = GRADIENTS[config.gradient.name].is_exact and config.solver.backward.stop_mode == "rel"
    plot_convergence(
        path,
        traces.forward,
        traces.backward,
        title=f"{config.name}: convergence over {traces.forward.shape[1]:,} evaluation images "
        f"({display_name(task.headline)} {100 * score:.2f} %)",
        forward_label=traces.forward_label,
        backward_label=traces.backward_label,
        forward_tol=config.solver.forward.tol if uses_tol else None,
        backward_tol=config.solver.backward.tol if exact else None,
    )
