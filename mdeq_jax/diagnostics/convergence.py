"""How the solves of evaluation examples converge, step by step, and a figure of it."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset, EvalLoader
from mdeq_jax.implicit import GRADIENTS, solve_adjoint
from mdeq_jax.implicit.binding import settings_of
from mdeq_jax.models import EquilibriumModel, ModelOutput
from mdeq_jax.runtime.early_program import EarlyProgram
from mdeq_jax.solvers import build_solver, fixed_point_iteration
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree
from mdeq_jax.viz.convergence import plot_convergence

MAX_TRACED = 1000


class ConvergenceTraces(NamedTuple):
    """Relative residual after each step, with no tolerance to stop at.

    Attributes:
        forward: `[steps, N]` of the equilibrium.
        backward: `[steps, N]` of the adjoint equation of each example's own loss.
        forward_name: names the solver.
        backward_name: names the gradient and its solver.
    """

    forward: np.ndarray
    backward: np.ndarray
    forward_name: str
    backward_name: str


def traces_program(model: EquilibriumModel, task: Task, config: ConfigDict) -> EarlyProgram:
    """What `convergence_traces` calls for each batch."""
    backward, _ = _backward_solver(model, config)
    return EarlyProgram(jax.jit(_make_traces(model, task, config, backward)))


def compile_job(
    program: EarlyProgram,
    model: EquilibriumModel,
    variables: PyTree,
    task: Task,
    dataset: Dataset,
    config: ConfigDict,
) -> Callable[[], None]:
    """A job for a thread that compiles `traces_program`, from the variables' shapes."""

    def shapes():
        loader, carry = _batches(model, task, dataset, config)
        batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, loader.batch_shapes()))
        return variables, jax.eval_shape(lambda: carry), batch

    return program.job(shapes)


def convergence_traces(
    model: EquilibriumModel,
    variables: dict,
    task: Task,
    dataset: Dataset,
    config: ConfigDict,
    program: EarlyProgram | None = None,
) -> ConvergenceTraces:
    """Solves evaluation examples with all the steps that the config allows, on one device.

    Each batch is given the carry that an evaluation gives it, see `Task.initial_carry`. Only the
    first `MAX_TRACED`: enough for the figure, and cheaper than a second evaluation. `program` is
    `traces_program`'s, which a thread may have compiled.
    """
    traces = program or traces_program(model, task, config)
    loader, carry = _batches(model, task, dataset, config)
    columns, batch_size, variables = [], _batch_size(config), jax.device_put(variables)
    for batch in islice(loader, -(-MAX_TRACED // batch_size)):
        keep = batch["mask"] > 0
        batch = jax.tree.map(jnp.asarray, batch)
        *found, carry = traces(variables, carry, batch)
        columns.append([np.asarray(t)[:, keep] for t in found])
    forward_trace, backward_trace = (np.concatenate(t, axis=1) for t in zip(*columns))
    return ConvergenceTraces(
        forward_trace,
        backward_trace,
        f"{config.solver.forward.name}, {config.solver.forward.max_steps} steps",
        _backward_solver(model, config)[1],
    )


def _batch_size(config: ConfigDict) -> int:
    return (config.eval.batch_size or config.train.batch_size) // jax.device_count()


def _batches(model, task: Task, dataset: Dataset, config: ConfigDict) -> tuple[EvalLoader, PyTree]:
    """The batches, and the carry that the first one finds."""
    size = _batch_size(config)
    loader = EvalLoader(dataset, size, num_workers=config.data.num_workers)
    return loader, task.initial_carry(cast(nn.Module, model), size)


def _make_traces(
    model: EquilibriumModel, task: Task, config: ConfigDict, backward: Callable
) -> Callable:
    """Returns `(variables, carry, batch) -> (forward, backward, carry)`, traces `[steps, B]`."""
    forward = build_solver(config.solver.forward, "solver.forward", pallas=config.pallas)
    forward = partial(forward, tol=0.0)
    linearize_at = settings_of(model.gradient).get("linearize_at", "z_star")

    def traces(variables: dict, carry: PyTree, batch: dict) -> tuple[jax.Array, jax.Array, PyTree]:
        batch = task.with_carry(batch, carry)
        inputs = task.inputs(batch)
        problem = model.fixed_point_problem(variables, task.to_network_input(inputs))

        def loss(z):
            outputs = ModelOutput(model.apply(variables, z, method="read_out"))
            return task.metric_sums(task.to_target_size(outputs, inputs), batch)["loss"]

        z, solution = model.solve(problem, f_solver=forward)
        # Linearised where training does it.
        point = z if linearize_at == "f_z_star" else problem.unravel(solution.z)
        f, params, x, _ = problem
        _, adjoint = solve_adjoint(f, params, x, point, jax.grad(loss)(z), b_solver=backward)
        if jax.tree.leaves(carry):
            carry = task.next_carry(task.infer(cast(nn.Module, model), variables, inputs))
        return solution.rel_trace, adjoint.rel_trace, carry

    return traces


def _backward_solver(model: EquilibriumModel, config: ConfigDict) -> tuple[Callable, str]:
    """The solver that the gradient amounts to, without a tolerance, and its name."""
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
    text = f"{settings.name}, {settings.max_steps} steps"
    # The other gradients solve nothing, but their adjoint equation can still be solved.
    return solver, f"{name}, {text}" if info.is_exact else f"{text} (training uses {name!r})"


def plot(
    path: Path,
    config: ConfigDict,
    model: EquilibriumModel,
    variables: dict,
    task: Task,
    dataset: Dataset,
    score: float,
    program: EarlyProgram | None = None,
) -> None:
    """Writes `convergence.png` of a trained network.

    Args:
        path: file to write.
        config: the whole config.
        model: of `build_model`, with an equilibrium.
        variables: Flax variables on the host.
        task: of `build_task`.
        dataset: its evaluation split is solved.
        score: value of the task's primary metric, for the title.
        program: of `traces_program`, if a thread compiles it.
    """
    traces = convergence_traces(model, variables, task, dataset, config, program)
    uses_tol = config.solver.forward.stop_mode == "rel"
    exact = GRADIENTS[config.gradient.name].is_exact and config.solver.backward.stop_mode == "rel"
    plot_convergence(
        path,
        traces.forward,
        traces.backward,
        title=f"{config.name}: convergence over {traces.forward.shape[1]:,} evaluation "
        f"{task.row_noun or task.example_noun} ({task.primary_metric.describe(score)})",
        forward_name=traces.forward_name,
        backward_name=traces.backward_name,
        forward_tol=config.solver.forward.tol if uses_tol else None,
        backward_tol=config.solver.backward.tol if exact else None,
    )
