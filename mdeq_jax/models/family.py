"""A row of the table of model families, and the interface of models with an equilibrium."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import flax.linen as nn
import jax

from mdeq_jax.implicit import BackwardStats, FixedPointProblem
from mdeq_jax.solvers import Solution
from mdeq_jax.tree import PyTree

if TYPE_CHECKING:
    from ml_collections import ConfigDict


SharedParameters = tuple[tuple[tuple[str, ...], ...], ...]


def _nothing_shared(config: "ConfigDict") -> SharedParameters:
    del config
    return ()


def _no_multiple(config: "ConfigDict") -> int:
    del config
    return 1


def _any_size(config: "ConfigDict") -> tuple[int, int] | None:
    del config
    return None


def _no_notes(config: "ConfigDict", training: bool) -> list[str]:
    del config, training
    return []


class Family(NamedTuple):
    """How a config becomes a model, and the facts about it that other parts need.

    The model that `build` returns is called as
    `model.apply(variables, inputs, train=..., forward=ForwardOptions(...))` and returns a
    `ModelOutput`. A model with an equilibrium is also an `EquilibriumModel`.

    Attributes:
        build: config to Flax module. The config has passed `validate`.
        validate: raises a ValueError for settings of the config that cannot work.
        architecture_fields: fields of `config.model` that the arrays of a checkpoint depend on.
        task: name of the task that the model is for, if any, unless `config.task` names another.
        ignored_fields: fields of `config.model` that other families read and this one does not.
        transferable: top-level names in "params" and "batch_stats" that a network for another
            task may start from (`init.from_checkpoint`).
        transfer_fields: fields of `config.model` that the transferable part depends on, but not
            in its shapes.
        has_equilibrium: whether the model solves for a fixed point. Without one, the settings of
            solvers, gradient and Jacobian loss have no effect.
        input_multiple: config to the number that the sides of an input must be multiples of.
        input_size: config to the height and width that every input must have; None: the sides may
            be any such multiples.
        shared_parameters: config to groups of parameters, paths in "params", that hold the same
            numbers: each has its own gradient, and the updates of all of them reach each.
        notes: `(config, training)` to lines on what a user of these settings should know; they are
            printed when a run starts.
        deploy: `(variables, config, model, dtype)` of a trained network to the variables and config
            of its merged form, which computes the same with less; None: there is no such form.
    """

    build: Callable[["ConfigDict"], nn.Module]
    validate: Callable[["ConfigDict"], None]
    architecture_fields: tuple[str, ...]
    task: str = ""
    ignored_fields: tuple[str, ...] = ()
    transferable: tuple[str, ...] = ()
    transfer_fields: tuple[str, ...] = ()
    has_equilibrium: bool = True
    input_multiple: Callable[["ConfigDict"], int] = _no_multiple
    input_size: Callable[["ConfigDict"], tuple[int, int] | None] = _any_size
    shared_parameters: Callable[["ConfigDict"], SharedParameters] = _nothing_shared
    notes: Callable[["ConfigDict", bool], list[str]] = _no_notes
    deploy: Callable[..., tuple[dict, "ConfigDict"]] | None = None


class EquilibriumModel(Protocol):
    """The interface of a Flax module whose output is read from a fixed point."""

    gradient: Callable[..., PyTree]
    apply: Callable[..., Any]  # of `flax.linen.Module`

    def fixed_point_problem(self, variables: dict, inputs: Any) -> FixedPointProblem:
        """The problem that the model solves in evaluation mode; no dropout."""
        ...

    def solve(
        self,
        problem: FixedPointProblem,
        *,
        f_solver: Callable[..., Solution] | None = None,
        step_budget: int | jax.Array | None = None,
        backward_stats: BackwardStats | None = None,
    ) -> tuple[PyTree, Solution]:
        """`equilibrium` of a problem, with the model's gradient and solver (or another)."""
        ...

    def read_out(self, z: PyTree, *, train: bool = False) -> Any:
        """The output at a state: `model.apply(variables, z, method="read_out")`."""
        ...
