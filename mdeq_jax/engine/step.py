"""The training and the evaluation step: pure functions of one device's share of a batch.

Both run mapped over the batch axis of `mdeq_jax.parallel`. Devices leave a solver's loop after
different numbers of steps, so collectives come before and after it, never inside.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from ml_collections import ConfigDict

from mdeq_jax.engine.schedules import jacobian_weight
from mdeq_jax.engine.state import TrainState
from mdeq_jax.engine.update import make_update, where
from mdeq_jax.implicit import GRADIENTS, BackwardStats
from mdeq_jax.models import ForwardOptions, ModelOutput
from mdeq_jax.parallel import device_index, mean_over_devices, sum_over_devices
from mdeq_jax.solvers import Solution
from mdeq_jax.tasks import Task
from mdeq_jax.tree import PyTree


class Report(NamedTuple):
    """What a training step reports.

    Attributes:
        scalars: means over the devices: "loss", "grad_norm", "jacobian_loss" (NaN if the step does
            not apply it), "skipped" (1 if the update was left out), "skipped_in_a_row",
            "forward/nfe", "backward/nfe".
        per_sample: `[B]` of this device: "forward/rel_residual", "forward/status",
            "backward/rel_residual", "backward/status"; those that the model, the phase and the
            gradient have.
        sums: the task's metric sums over all devices, and "count".
    """

    scalars: dict[str, jax.Array]
    per_sample: dict[str, jax.Array]
    sums: dict[str, jax.Array]


class _Draws(NamedTuple):
    """The random choices of a step, the same on every device."""

    applies_jacobian: bool | jax.Array
    jacobian_weight: jax.Array
    step_budget: int | jax.Array
    dropout_key: jax.Array
    jacobian_key: jax.Array


def training_config(config: ConfigDict) -> ConfigDict:
    """`config` with room in the forward solver's buffers for the longest random limit."""
    if config.train.random_forward_delta == 0 or config.jacobian.frequency == 0:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps += config.train.random_forward_above
    return config


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    task: Task,
    config: ConfigDict,
    steps_per_epoch: int,
) -> Callable:
    """Returns `train_step(state, carry, batch, pretraining) -> (state, carry, report)`.

    `carry` is what the batch before left to this device's examples, see `Task.initial_carry`.
    `pretraining` (static) selects the pretraining phase: `train.pretrain_layers` applications of
    the cell instead of the solver. An update whose loss or gradient is not finite is left out: the
    step counts, the carry becomes the initial one, and nothing else changes. The report is a
    `Report`.

    Args:
        model: made from `training_config(config)`.
        optimizer: of `build_optimizer`.
        task: loss and metrics.
        config: the whole config.
        steps_per_epoch: of the training set.
    """
    draw = make_draw(config, steps_per_epoch)
    augment_key = _make_augment_key(config)
    backward = _make_backward(model, task, config)
    update = make_update(optimizer, config.train.ema_decay)
    if config.train.accumulate_steps > 1:
        backward = _accumulate(backward, task, config.train.accumulate_steps)

    def train_step(
        state: TrainState, carry: PyTree, batch: dict, pretraining: bool
    ) -> tuple[TrainState, PyTree, Report]:
        draws = draw(state.step)
        if task.augments:
            batch = task.augment(batch, augment_key(state.step))
        size = task.batch_size(batch)
        first_sample = device_index() * size
        grads, stats, carry, report = backward(
            state.params,
            state.batch_stats,
            task.with_carry(batch, carry),
            draws,
            first_sample,
            pretraining,
        )
        grads, stats = mean_over_devices((grads, stats))
        scalars = mean_over_devices(report.scalars)
        norm = optax.tree.norm(grads)
        # The same on every device, as both are means over them.
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)

        new = update(finite, state, grads, norm, stats)
        carry = where(finite, carry, task.initial_carry(model, size))
        skipped_in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        new_state = state.replace(step=state.step + 1, skipped_in_a_row=skipped_in_a_row, **new)
        scalars |= {
            "grad_norm": norm,
            "skipped": 1.0 - finite,
            "skipped_in_a_row": skipped_in_a_row,
        }
        sums = sum_over_devices(report.sums)
        return new_state, carry, Report(scalars, report.per_sample, sums)

    return train_step


def make_draw(config: ConfigDict, steps_per_epoch: int) -> Callable[[jax.Array], _Draws]:
    """Returns `draw(step)`: whether the step applies the Jacobian loss, the forward limit, keys."""
    weight_at = jacobian_weight(config, steps_per_epoch)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not that of the initialisation
    max_steps, train = config.solver.forward.max_steps, config.train
    delta, above = train.random_forward_delta, train.random_forward_above

    def draw(step):
        coin, limit, rest = jax.random.split(jax.random.fold_in(key, step), 3)
        keys = jax.random.split(rest)
        if config.jacobian.frequency == 0:
            return _Draws(False, jnp.float32(0), max_steps, *keys)
        weight = weight_at(step)
        applies = (jax.random.uniform(coin) < config.jacobian.frequency) & (weight > 0)
        change = jax.random.randint(limit, (), -delta, above + 1) if delta else 0
        return _Draws(applies, weight, max_steps + jnp.where(applies, change, 0), *keys)

    return draw


def _make_augment_key(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Returns the random key of a step for `Task.augment`, another one on each device."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)  # 1 is for the draws above
    return lambda step: jax.random.fold_in(jax.random.fold_in(key, step), device_index())


def _make_backward(model: nn.Module, task: Task, config: ConfigDict) -> Callable:
    """Returns `backward(params, batch_stats, batch, draws, first_sample, pretraining)`.

    It computes the gradient of this device's loss, the new batch statistics, the next carry and a
    `Report` of this device. `first_sample` is the index of its first sample in the global batch.
    """
    layers = config.train.pretrain_layers

    def backward(params, batch_stats, batch, draws, first_sample, pretraining):
        size = task.batch_size(batch)

        def loss_fn(params, backward_stats):
            out, mutated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                task.inputs(batch),
                train=True,
                forward=ForwardOptions(
                    pretraining_layers=layers if pretraining else None,
                    step_budget=draws.step_budget,
                    backward_stats=backward_stats,
                    with_jacobian=draws.applies_jacobian,
                    first_sample=first_sample,
                ),
                rngs={"dropout": draws.dropout_key, "jacobian": draws.jacobian_key},
                mutable=["batch_stats"],
            )
            loss = task.loss(out, batch)
            return loss + draws.jacobian_weight * out.jacobian_loss, (loss, out, mutated)

        (_, (loss, out, mutated)), (grads, adjoint) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, BackwardStats.zeros(size))
        scalars = {
            "loss": loss,
            "jacobian_loss": jnp.where(draws.applies_jacobian, out.jacobian_loss, jnp.nan),
        }
        per_sample = {}
        if out.solution is not None:
            solve_scalars, per_sample = _solve_report(out.solution, adjoint, config.gradient)
            scalars |= solve_scalars
        sums = task.metric_sums(out, {**batch, "mask": jnp.ones(size)})
        sums = {"count": jnp.float32(size), **sums}
        report = Report(scalars, per_sample, sums)
        return grads, mutated.get("batch_stats", {}), task.next_carry(out), report

    return backward


def _solve_report(
    solution: Solution, adjoint: BackwardStats, gradient: ConfigDict
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Scalars and `[B]` arrays of the forward solve, and of the backward pass if it has any."""
    info = GRADIENTS[gradient.name]
    scalars = {"forward/nfe": solution.nfe.astype(jnp.float32)}
    per_sample = {
        "forward/rel_residual": solution.rel_residual,
        "forward/status": solution.status,
    }
    if info.reports_residual:
        scalars["backward/nfe"] = adjoint.nfe
        per_sample["backward/rel_residual"] = adjoint.rel_residual
    if info.can_fail_with(gradient.to_dict()):
        per_sample["backward/status"] = adjoint.status
    return scalars, per_sample


def _accumulate(backward: Callable, task: Task, parts: int) -> Callable:
    """`backward` a part of the batch at a time: its mean gradient, at the memory of one part."""

    def accumulated(params, batch_stats, batch, draws, first_sample, pretraining):
        size = task.batch_size(batch) // parts
        # Without -1 in the shapes, which empty arrays do not determine.
        pieces = jax.tree.map(lambda x: x.reshape(parts, size, *x.shape[1:]), batch)

        def one(carry, inputs):
            total, stats = carry
            piece, index = inputs
            grads, stats, left, report = backward(
                params, stats, piece, draws, first_sample + index * size, pretraining
            )
            return (jax.tree.map(jnp.add, total, grads), stats), (left, report)

        start = (jax.tree.map(jnp.zeros_like, params), batch_stats)
        (total, stats), (left, reports) = lax.scan(one, start, (pieces, jnp.arange(parts)))
        report = Report(
            scalars={name: jnp.mean(value) for name, value in reports.scalars.items()},
            per_sample={name: value.reshape(-1) for name, value in reports.per_sample.items()},
            sums={name: jnp.sum(value, axis=0) for name, value in reports.sums.items()},
        )
        left = jax.tree.map(lambda x: x.reshape(parts * size, *x.shape[2:]), left)
        return jax.tree.map(lambda x: x / parts, total), stats, left, report

    return accumulated


def make_eval_step(model: nn.Module, task: Task) -> Callable:
    """Returns `eval_step(variables, carry, batch, step_budget) -> (sums, per_sample, carry)`.

    `carry` is what the batch before left to this device's examples. `sums` are over the examples of
    "mask" on all devices, with "count". `per_sample` is of this device: "mask" and, if the model
    solves for an equilibrium, "rel_residual", "steps", "status" and "nfe", each `[B]`.
    """

    def eval_step(
        variables: dict, carry: PyTree, batch: dict, step_budget: jax.Array
    ) -> tuple[dict, dict, PyTree]:
        batch = task.with_carry(batch, carry)
        out = task.infer(model, variables, task.inputs(batch), step_budget)
        sums, per_sample = measure_batch(task, out, batch)
        return sum_over_devices(sums), per_sample, task.next_carry(out)

    return eval_step


def measure_batch(task: Task, out: ModelOutput, batch: dict) -> tuple[dict, dict]:
    """The rows of `make_eval_step`, and the sums of this device, from the output for a batch."""
    sums = task.metric_sums(out, batch)
    if "count" not in sums:
        sums = {**sums, "count": jnp.sum(batch["mask"])}
    per_sample = {"mask": batch["mask"]}
    if (solution := out.solution) is not None:
        per_sample |= {
            "rel_residual": solution.rel_residual,
            "steps": solution.steps,
            "status": solution.status,
            "nfe": jnp.broadcast_to(solution.nfe, solution.steps.shape),
        }
    return sums, per_sample
