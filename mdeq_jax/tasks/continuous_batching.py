"""Continuous batching of a model's evaluation: see `mdeq_jax.solvers.stream`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import FixedPointProblem
from mdeq_jax.implicit.checked_cell import checked_cell
from mdeq_jax.models import ModelOutput
from mdeq_jax.solvers import Solution, stream
from mdeq_jax.solvers.slots import Left, Slots
from mdeq_jax.tasks.task import Task
from mdeq_jax.tree import PyTree, ravel_batch


class InFlight(NamedTuple):
    """The examples that are being solved on one device.

    Attributes:
        slots: of the solver.
        batch: their entries of the batches, leaves `[S, ...]`; "mask" is 0 for an empty slot.
    """

    slots: Slots
    batch: dict


class ContinuousBatching:
    """A model's evaluation step with slots that take the next example as soon as one is finished.

    `step` has the results of as many examples as it is given, but not of the same ones: those that
    are finished leave, and the slowest of earlier batches among them. A last call with a batch of
    which "mask" is zero hands out the rest. So do parts of a batch that are padding.
    """

    def __init__(self, model: Any, task: Task, slots: int):
        """Prepares nothing; the methods are pure functions to compile.

        Args:
            model: of `build_model`, an `EquilibriumModel`.
            task: its task, with `single_pass`.
            slots: at most the number of examples in a batch.
        """
        self._model, self._task, self._size = model, task, slots

    def start(self, variables: dict, batch: dict) -> InFlight:
        """Empty slots for examples like those of a batch, whose values do not matter.

        Raises:
            ValueError: the model's cell closes over values that differ between examples.
        """
        problem = self._problem(variables, batch)
        if checked_cell(*problem).params is not problem.params:
            raise ValueError(
                "Continuous batching needs a cell f(params, z, x) that closes over no traced "
                "values: pass them in x, or set eval.continuous_batching='off'."
            )
        x, _ = _split(problem.x, self._per_sample(variables, batch))
        first, z0 = self._first((x, batch)), self._first(ravel_batch(problem.z0)[0])
        slots = stream.empty_slots(self._solver(problem), first[0], z0)
        return InFlight(slots, jax.tree.map(jnp.zeros_like, first[1]))

    def step(
        self,
        variables: dict,
        flight: InFlight,
        batch: dict,
        step_budget: jax.Array | None = None,
        *,
        report: Callable[[ModelOutput, dict], tuple[PyTree, PyTree]],
    ) -> tuple[InFlight, PyTree, PyTree]:
        """Takes every example of a batch with "mask", and hands out as many that are finished.

        It takes a part of the batch at a time, hardly larger than the slots. So the output of few
        examples is in memory at once, and none is computed for parts without a finished example.

        Args:
            variables: of the model.
            flight: of `start`, or of the last call.
            batch: examples; padding comes last.
            step_budget: see `stream.advance`.
            report: of the model's output for some examples, whose `solution.nfe` is `[B]`, and of
                their entries of the batches: sums over those with "mask", and rows `[B, ...]`.

        Returns:
            The examples in flight, the sums, and the rows of those that left. The rows are zero
            for parts without a finished example; "mask" should be among them.
        """
        count = num_parts(batch["mask"].shape[0], self._size)

        def one_part(flight: InFlight, part: dict):
            flight, left, done = self._exchange(variables, flight, part, step_budget)
            shapes = jax.eval_shape(partial(self._read_out, report, variables), left, part, done)
            reported = lax.cond(
                jnp.any(done["mask"] > 0),
                partial(self._read_out, report, variables),
                lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
                left,
                part,
                done,
            )
            return flight, reported

        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        flight, (sums, rows) = lax.scan(one_part, flight, parts)
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        return flight, sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def _exchange(
        self, variables: dict, flight: InFlight, batch: dict, step_budget: jax.Array | None
    ) -> tuple[InFlight, Left, dict]:
        """Those in flight, those that left, and the entries of the latter."""
        problem = self._problem(variables, batch)
        x, merge = _split(problem.x, self._per_sample(variables, batch))
        z0, unravel = ravel_batch(problem.z0)

        def f(z: jax.Array, x: PyTree) -> jax.Array:
            return ravel_batch(problem.f(problem.params, unravel(z), merge(x)))[0]

        taken = jnp.where(batch["mask"] > 0, 1 + jnp.arange(z0.shape[0]), 0)
        slots, left = stream.advance(
            f,
            self._solver(problem),
            flight.slots,
            x,
            z0,
            count=jnp.max(taken),
            step_budget=step_budget,
        )
        everyone = jax.tree.map(lambda *both: jnp.concatenate(both), flight.batch, batch)
        inside = jax.tree.map(lambda entry: entry[slots.source], everyone)
        done = jax.tree.map(lambda entry: entry[left.source], everyone)
        return InFlight(slots, inside), left, done

    def _read_out(self, report: Callable, variables: dict, left: Left, batch: dict, done: dict):
        """The report on those that left."""
        model: Any = self._model
        problem = self._problem(variables, batch)
        _, merge = _split(problem.x, self._per_sample(variables, batch))
        z, solution = model.solve(
            problem._replace(x=merge(left.x)), f_solver=partial(_solved, left.solution)
        )
        out = ModelOutput(model.apply(variables, z, method="read_out"), solution, z)
        return report(self._task.to_target_size(out, self._task.inputs(batch)), done)

    def _problem(self, variables: dict, batch: dict) -> FixedPointProblem:
        inputs = self._task.to_network_input(self._task.inputs(batch))
        return self._model.fixed_point_problem(variables, inputs)

    def _per_sample(self, variables: dict, batch: dict) -> list[bool]:
        """Which leaves of the problem's x have the axis of the samples."""

        def shapes(extra: int):
            longer = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    (leaf.shape[0] + extra, *leaf.shape[1:]), leaf.dtype
                ),
                batch,
            )
            x = jax.eval_shape(lambda v, b: self._problem(v, b).x, variables, longer)
            return [leaf.shape for leaf in jax.tree.leaves(x)]

        return [one != other for one, other in zip(shapes(0), shapes(1))]

    def _first(self, tree: PyTree) -> PyTree:
        """The first `slots` samples."""
        return jax.tree.map(lambda leaf: leaf[: self._size], tree)

    def _solver(self, problem: FixedPointProblem) -> stream.Settings:
        flat = jax.eval_shape(lambda z: ravel_batch(z)[0], problem.z0)
        like = jax.ShapeDtypeStruct((self._size, *flat.shape[1:]), flat.dtype)
        return stream.settings_of(self._model.f_solver, like)


def num_parts(batch_size: int, slots: int) -> int:
    """How many equal parts of a batch are the smallest that are no fewer than the slots."""
    return max(n for n in range(1, batch_size // slots + 1) if batch_size % n == 0)


def _split(x: PyTree, per_sample: list[bool]) -> tuple[list, Callable[[list], PyTree]]:
    """The leaves with the axis of the samples, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(x)

    def merge(own: list) -> PyTree:
        given = iter(own)
        return jax.tree.unflatten(
            structure, [next(given) if take else leaf for leaf, take in zip(leaves, per_sample)]
        )

    return [leaf for leaf, take in zip(leaves, per_sample) if take], merge


def _solved(solution: Solution, f, z0, *, step_budget=None) -> Solution:
    """A solver that has its result already."""
    del f, z0, step_budget
    return solution
