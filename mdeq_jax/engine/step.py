"""The training and the evaluation step: pure functions of one device's share of a batch.

Both run under `pmap` with the axis "batch". Devices leave a solver's loop after different numbers
of steps, so collectives come before and after it, never inside.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mdeq_jax.engine.schedules import jacobian_weight
from mdeq_jax.engine.state import TrainState
from mdeq_jax.implicit import GRADIENTS, BackwardStats
from mdeq_jax.models import ForwardOptions
from mdeq_jax.parallel import device_index, mean_over_devices, sum_over_devices
from mdeq_jax.tasks import Task


class Report(NamedTuple):
    """What a training step tells.

    Attributes:
        scalars: means over the devices: "loss", "grad_norm", "jacobian_loss" (NaN where the step
            does not apply it), "skipped" (1 where the update was left out), "skipped_in_a_row",
            "forward/nfe", "backward/nfe".
        per_sample: `[B]` of this device: "forward/rel_residual", "forward/status",
            "backward/rel_residual", "backward/status"; what the phase and the gradient have of it.
        sums: the task's figures over all devices, and "count".
    """

    scalars: dict[str, jax.Array]
    per_sample: dict[str, jax.Array]
    sums: dict[str, jax.Array]


class _Draws(NamedTuple):
    """What is random in a step, the same on every device."""

    applies_jacobian: bool | jax.Array
    jacobian_weight: jax.Array
    step_budget: int | jax.Array
    dropout_key: jax.Array
    jacobian_key: jax.Array


def training_config(config):
    """`config` with room in the forward solver's buffers for the longest random limit."""
    if config.train.random_forward_delta == 0 or config.jacobian.frequency == 0:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.solver.forward.max_steps += 1
    return config


def make_train_step(model, optimizer, task: Task, config, steps_per_epoch: int) -> Callable:
    """Returns `train_step(state, batch, plain) -> (state, report)`.

    Args:
        model: made from `training_config(config)`.
        optimizer: of `build_optimizer`.
        task: loss and figures.
        config: the whole config.
        steps_per_epoch: of the training set.

    `plain` (static) selects the pretraining phase: `train.pretrain_layers` plain applications of
    the cell instead of the solver. `batch` holds "image" `[B, H, W, 3]` and "label". An update
    whose loss or gradient is not finite is left out: the step counts, nothing else changes. The
    report is a `Report`.
    """
    draw = _make_draw(config, steps_per_epoch)
    backward = _make_backward(model, task, config)
    parts, decay = config.train.accumulate_steps, config.train.ema_decay

    def train_step(state: TrainState, batch: dict, plain: bool) -> tuple[TrainState, Report]:
        draws = draw(state.step)
        place = device_index() * batch["image"].shape[0]
        if parts == 1:
            grads, stats, report = backward(
                state.params, state.batch_stats, batch, draws, place, plain
            )
        else:
            grads, stats, report = _accumulate(backward, parts)(
                state.params, state.batch_stats, batch, draws, place, plain
            )
        grads, stats = mean_over_devices((grads, stats))
        scalars = mean_over_devices(report.scalars)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = {"params": params, "batch_stats": stats, "opt_state": opt_state}
        if decay is not None:
            # Young averages forget faster, or they would long be those of the initialisation.
            rate = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
            current = {"params": params, "batch_stats": stats}
            moved["average"] = jax.tree.map(
                lambda old, new: rate * old + (1 - rate) * new, state.average, current
            )
        # The same on every device, as both are means over them.
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)
        kept = {name: getattr(state, name) for name in moved}
        moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        skipped_in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        new_state = state.replace(step=state.step + 1, skipped_in_a_row=skipped_in_a_row, **moved)
        scalars |= {
            "grad_norm": norm,
            "skipped": 1.0 - finite,
            "skipped_in_a_row": skipped_in_a_row,
        }
        return new_state, Report(scalars, report.per_sample, sum_over_devices(report.sums))

    return train_step


def _make_draw(config, steps_per_epoch: int) -> Callable[[jax.Array], _Draws]:
    """Returns `draw(step)`: whether the step applies the Jacobian loss, the forward limit, keys."""
    weight_at = jacobian_weight(config, steps_per_epoch)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not that of the initialisation
    max_steps, delta = config.solver.forward.max_steps, config.train.random_forward_delta

    def draw(step):
        coin, limit, own = jax.random.split(jax.random.fold_in(key, step), 3)
        keys = jax.random.split(own)
        if config.jacobian.frequency == 0:
            return _Draws(False, jnp.float32(0), max_steps, *keys)
        weight = weight_at(step)
        applies = (jax.random.uniform(coin) < config.jacobian.frequency) & (weight > 0)
        change = jax.random.randint(limit, (), -delta, 2) if delta else 0
        return _Draws(applies, weight, max_steps + jnp.where(applies, change, 0), *keys)

    return draw


def _make_backward(model, task: Task, config) -> Callable:
    """Returns `backward(params, batch_stats, batch, draws, place, plain)`.

    It gives the gradient of this device's loss, the new batch statistics and a `Report` of this
    device; `place` is that of the first sample in the global batch.
    """
    gradient = GRADIENTS[config.gradient.name]
    can_fail = gradient.can_fail_with(config.gradient)

    def backward(params, batch_stats, batch, draws, place, plain):
        size = batch["image"].shape[0]

        def loss_fn(params, backward_stats):
            out, mutated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                forward=ForwardOptions(
                    pretraining_layers=config.train.pretrain_layers if plain else None,
                    step_budget=draws.step_budget,
                    backward_stats=backward_stats,
                    with_jacobian=draws.applies_jacobian,
                    first_sample=place,
                ),
                rngs={"dropout": draws.dropout_key, "jacobian": draws.jacobian_key},
                mutable=["batch_stats"],
            )
            loss = task.loss(out.logits, batch)
            return loss + draws.jacobian_weight * out.jacobian_loss, (loss, out, mutated)

        (_, (loss, out, mutated)), (grads, adjoint) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, BackwardStats.zeros(size))
        scalars = {
            "loss": loss,
            "jacobian_loss": jnp.where(draws.applies_jacobian, out.jacobian_loss, jnp.nan),
        }
        per_sample = {}
        solved = out.solution is not None
        if solved:
            scalars["forward/nfe"] = out.solution.nfe.astype(jnp.float32)
            per_sample["forward/rel_residual"] = out.solution.rel_residual
            per_sample["forward/status"] = out.solution.status
        if solved and gradient.reports_residual:
            scalars["backward/nfe"] = adjoint.nfe
            per_sample["backward/rel_residual"] = adjoint.rel_residual
        if solved and can_fail:
            per_sample["backward/status"] = adjoint.status
        figures = task.figures(out.logits, {**batch, "mask": jnp.ones(size)})
        sums = {**figures, "count": jnp.float32(size)}
        return grads, mutated["batch_stats"], Report(scalars, per_sample, sums)

    return backward


def _accumulate(backward: Callable, parts: int) -> Callable:
    """`backward` a part of the batch at a time: its mean gradient, at the memory of one part."""

    def accumulated(params, batch_stats, batch, draws, place, plain):
        pieces = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        size = batch["image"].shape[0] // parts

        def one(carry, inputs):
            total, stats = carry
            piece, index = inputs
            grads, stats, report = backward(
                params, stats, piece, draws, place + index * size, plain
            )
            return (jax.tree.map(jnp.add, total, grads), stats), report

        start = (jax.tree.map(jnp.zeros_like, params), batch_stats)
        (total, stats), reports = lax.scan(one, start, (pieces, jnp.arange(parts)))
        report = Report(
            scalars={name: jnp.mean(value) for name, value in reports.scalars.items()},
            per_sample={name: value.reshape(-1) for name, value in reports.per_sample.items()},
            sums={name: jnp.sum(value, axis=0) for name, value in reports.sums.items()},
        )
        return jax.tree.map(lambda x: x / parts, total), stats, report

    return accumulated


def make_eval_step(model, task: Task) -> Callable:
    """Returns `eval_step(variables, batch, step_budget) -> (sums, per_sample)`.

    `sums` are over the examples of "mask" on all devices, with "count"; `per_sample` is of this
    device: "rel_residual", "steps", "status", "mask", each `[B]`, and "nfe".
    """

    def eval_step(variables: dict, batch: dict, step_budget: jax.Array) -> tuple[dict, dict]:
        logits, solution = task.infer(model, variables, batch["image"], step_budget)
        sums = {**task.figures(logits, batch), "count": jnp.sum(batch["mask"])}
        per_sample = {
            "rel_residual": solution.rel_residual,
            "steps": solution.steps,
            "status": solution.status,
            "nfe": jnp.broadcast_to(solution.nfe, solution.steps.shape),
            "mask": batch["mask"],
        }
        return sum_over_devices(sums), per_sample

    return eval_step
