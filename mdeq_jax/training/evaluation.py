"""Evaluation over a whole split, and the convergence of its solves step by step."""

import inspect
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import Dataset, EvalLoader, Prefetcher
from mdeq_jax.implicit import solve_adjoint
from mdeq_jax.models import CellInput, apply_cell
from mdeq_jax.models.build import build_solver
from mdeq_jax.solvers import Status, fixed_point_iteration
from mdeq_jax.training import devices
from mdeq_jax.training.step import make_eval_step
from mdeq_jax.training.tasks import Task
from mdeq_jax.tree import ravel_batch


class Evaluator:
    """Evaluates variables on a data set; compiles once."""

    def __init__(self, model, task: Task, dataset: Dataset, config):
        """Prepares the loader and the step.

        Args:
            model: of `build_model`.
            task: of `build_task`.
            dataset: its evaluation split is read.
            config: the whole config.
        """
        batch_size = config.eval.batch_size or config.train.batch_size
        devices.check_batch_size(batch_size, "eval.batch_size")
        self._loader = EvalLoader(
            dataset,
            batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.data.num_workers,
        )
        self._step = devices.pmap(make_eval_step(model, task))

    def __call__(self, replicated_variables) -> dict[str, float]:
        """Figures over every example of the split, each counted once.

        Returns:
            "eval/NAME" for each figure of the task; "eval/nfe", evaluations of the cell a batch;
            "eval/steps", solver steps to a sample's best iterate; "eval/rel_residual" (median),
            "eval/rel_residual_p90"; "eval/unconverged", the share that did not reach `tol`;
            "eval/skipped", unreadable examples left out so far (`data.on_error`).
            The solver's figures are those of this host's examples.
        """
        sums, samples, nfe = {}, [], []
        with Prefetcher(self._loader, devices.place) as batches:
            for batch, _ in batches:
                batch_sums, per_sample = jax.device_get(self._step(replicated_variables, batch))
                for name, value in batch_sums.items():
                    sums[name] = sums.get(name, 0.0) + float(value[0])
                nfe.append(per_sample.pop("nfe").mean())
                keep = per_sample.pop("mask") > 0
                samples.append({name: value[keep] for name, value in per_sample.items()})
        count = sums.pop("count")
        residual, steps, status = (
            np.concatenate([s[name] for s in samples])
            for name in ("rel_residual", "steps", "status")
        )
        return {
            **{f"eval/{name}": value / count for name, value in sums.items()},
            "eval/examples": int(count),
            "eval/nfe": float(np.mean(nfe)),
            "eval/steps": float(steps.mean()),
            "eval/rel_residual": float(np.median(residual)),
            "eval/rel_residual_p90": float(np.quantile(residual, 0.9)),
            "eval/unconverged": float(np.mean(status != Status.CONVERGED)),
            "eval/skipped": sum(self._loader.skipped.values()),
        }


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
    forward = partial(build_solver(config.solver.forward, "solver.forward"), tol=0.0)
    backward, label = _backward_solver(model, config)
    linearize_at = model.gradient.keywords.get("linearize_at", "z_star")

    @jax.jit
    def traces(variables, batch):
        injection = model.apply(variables, batch["image"], method="inject")
        weights = model.apply(variables, method="cell_weights")
        x, z0 = CellInput(injection), model.zero_state(injection)
        f = partial(apply_cell, model.cell.spec)

        def loss(z):
            return task.figures(model.apply(variables, z, method="read_out"), batch)["loss"]

        z, solution = model.solve(f, weights, x, z0, f_solver=forward)
        # Linearised where training does it.
        point = z if linearize_at == "f_z_star" else ravel_batch(z0)[1](solution.z)
        _, adjoint = solve_adjoint(f, weights, x, point, jax.grad(loss)(z), b_solver=backward)
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
    name, options = config.gradient.name, model.gradient.keywords
    if name == "ift":
        settings = config.solver.backward
        solver = partial(build_solver(settings, "solver.backward"), tol=0.0)
        return solver, f"ift, {settings.name}, {settings.max_steps} steps"
    # A truncated gradient is a partial sum of the damped iteration of the adjoint equation.
    defaults = {k: v.default for k, v in inspect.signature(model.gradient.func).parameters.items()}
    settings = {"steps": 1, "tau": 1.0, **defaults, **options}  # one_step has neither
    terms, tau = settings["steps"], settings["tau"]
    solver = partial(fixed_point_iteration, max_steps=terms, tau=tau, tol=0.0)
    return solver, f"{name}, {terms} terms, tau = {tau}"
