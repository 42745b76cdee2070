"""The training and the evaluation step: pure functions of one device's share of a batch.

Both run under `pmap` with the axis "batch". Devices leave a solver's loop after different numbers
of steps, so collectives come before and after it, never inside.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mdeq_jax.implicit import BackwardStats
from mdeq_jax.models.build import BATCH_AXIS
from mdeq_jax.training.schedules import jacobian_weight
from mdeq_jax.training.state import TrainState
from mdeq_jax.training.tasks import Task


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
    the cell instead of the solver. `batch` holds "image" `[B, H, W, 3]` and "label". The report is
    of scalars averaged over devices ("jacobian_loss" is NaN where the step does not apply it), and
    of this device's samples: "forward/rel_residual", "forward/status", "backward/rel_residual",
    "backward/status", each `[B]`; the backward ones only for gradients that solve for something.
    """
    weight_at = jacobian_weight(config, steps_per_epoch)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not that of the initialisation
    has_adjoint = config.gradient.name in ("ift", "neumann")
    max_steps, delta = config.solver.forward.max_steps, config.train.random_forward_delta

    def draw(coin, limit, step):
        """Whether this step applies the Jacobian loss, its weight, and the forward limit."""
        if config.jacobian.frequency == 0:
            return False, jnp.float32(0), max_steps
        weight = weight_at(step)
        applies = (jax.random.uniform(coin) < config.jacobian.frequency) & (weight > 0)
        change = jax.random.randint(limit, (), -delta, 2) if delta else 0
        return applies, weight, max_steps + jnp.where(applies, change, 0)

    def train_step(state: TrainState, batch: dict, plain: bool) -> tuple[TrainState, dict]:
        coin, limit, own = jax.random.split(jax.random.fold_in(key, state.step), 3)
        dropout_key, jacobian_key = jax.random.split(own)
        applies, weight, budget = draw(coin, limit, state.step)

        def loss_fn(params, stats):
            out, mutated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                plain_layers=config.train.pretrain_layers if plain else None,
                step_budget=budget,
                stats=stats,
                with_jacobian=applies,
                first_sample=lax.axis_index(BATCH_AXIS) * batch["image"].shape[0],
                rngs={"dropout": dropout_key, "jacobian": jacobian_key},
                mutable=["batch_stats"],
            )
            loss = task.loss(out.logits, batch)
            return loss + weight * out.jacobian_loss, (loss, out, mutated)

        stats = BackwardStats.zeros(batch["image"].shape[0])
        (_, (loss, out, mutated)), (grads, backward) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(state.params, stats)
        grads = lax.pmean(grads, BATCH_AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=lax.pmean(mutated["batch_stats"], BATCH_AXIS),
            opt_state=opt_state,
        )
        ones = jnp.ones(batch["image"].shape[0])
        figures = task.figures(out.logits, {**batch, "mask": ones})
        report = {
            **{name: value / ones.size for name, value in figures.items()},
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "jacobian_loss": jnp.where(applies, out.jacobian_loss, jnp.nan),
        }
        per_sample = {}
        if not plain:
            report["forward/nfe"] = out.solution.nfe.astype(jnp.float32)
            per_sample["forward/rel_residual"] = out.solution.rel_residual
            per_sample["forward/status"] = out.solution.status
        if not plain and has_adjoint:
            report["backward/nfe"] = backward.nfe
            per_sample["backward/rel_residual"] = backward.rel_residual
        if not plain and config.gradient.name == "ift":
            per_sample["backward/status"] = backward.status
        return new_state, {**lax.pmean(report, BATCH_AXIS), **per_sample}

    return train_step


def make_eval_step(model, task: Task) -> Callable:
    """Returns `eval_step(variables, batch) -> (sums, per_sample)`.

    `sums` are over the examples of "mask" on all devices, with "count" to divide by; `per_sample`
    is of this device: "rel_residual", "steps", "status", "mask", each `[B]`, and "nfe".
    """

    def eval_step(variables: dict, batch: dict) -> tuple[dict, dict]:
        out = model.apply(variables, batch["image"])
        sums = {**task.figures(out.logits, batch), "count": jnp.sum(batch["mask"])}
        per_sample = {
            "rel_residual": out.solution.rel_residual,
            "steps": out.solution.steps,
            "status": out.solution.status,
            "nfe": out.solution.nfe,
            "mask": batch["mask"],
        }
        return lax.psum(sums, BATCH_AXIS), per_sample

    return eval_step
