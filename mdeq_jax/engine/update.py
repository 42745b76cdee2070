"""The update of a training step, and leaving it out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.engine.state import TrainState
from mdeq_jax.tree import PyTree


def make_update(optimizer: optax.GradientTransformation, ema_decay: float | None) -> Callable:
    """Returns `update(condition, state, grads, norm, stats)`: fields of the new state, by name.

    Those are the parameters, `stats`, the optimiser's state and, with a decay, the moving average;
    all as in `state` if the condition is false. `norm` is that of `grads`.
    """
    optimizer_update = optax.with_extra_args_support(optimizer).update
    names = ("params", "batch_stats", "opt_state") + ("average",) * (ema_decay is not None)

    def update(condition: jax.Array, state: TrainState, grads, norm: jax.Array, stats) -> dict:
        def moved() -> dict:
            opt_state = _at_step(state.opt_state, state.step)
            updates, opt_state = optimizer_update(grads, opt_state, state.params, grad_norm=norm)
            params = optax.apply_updates(state.params, updates)
            new = {"params": params, "batch_stats": stats, "opt_state": opt_state}
            if ema_decay is not None:
                current = {"params": params, "batch_stats": stats}
                new["average"] = _moving_average(state.average, current, state.step, ema_decay)
            return new

        return update_if(condition, moved, {name: getattr(state, name) for name in names})

    return update


def _at_step(opt_state: PyTree, step: jax.Array) -> PyTree:
    """The optimiser's state, with learning rates of this step.

    Optax counts updates for its schedules, which does not count those that were left out.
    """

    def is_schedule(node) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: optax.ScaleByScheduleState(count=step) if is_schedule(node) else node,
        opt_state,
        is_leaf=is_schedule,
    )


def update_if(condition: jax.Array, update: Callable[[], dict], kept: dict) -> dict:
    """`update()`, or `kept`, which has its structure.

    A branch on CPUs: LLVM would compile each loop of the update twice for a choice inside it. GPUs
    would wait for the host at a branch.
    """
    if hardware.target().platform == "cpu":
        return lax.cond(condition, update, lambda: kept)
    return where(condition, update(), kept)


def where(condition: jax.Array, tree: PyTree, other: PyTree) -> PyTree:
    """`tree` or `other`, chosen by number."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def _moving_average(average: PyTree, current: PyTree, step: jax.Array, decay: float) -> PyTree:
    """The average after a step; young averages forget faster.

    Otherwise they would long be those of the initialisation.
    """
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, average, current)
