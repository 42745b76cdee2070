"""The state that a training run carries from step to step, and its optimiser."""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from mdeq_jax.engine.released_recipe import clip_total_norm, equal_shared, sum_shared_updates
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.models import family_of
from mdeq_jax.models.family import SharedParameters
from mdeq_jax.runtime.compilation import options_for_one_call
from mdeq_jax.tasks import Task, task_type

OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
KERNELS = ("kernel", "v")  # names of parameters; "v" is a weight-normalised kernel
MUON_RMS = 0.2  # of an update at rate 1, as Adam's (Liu et al. 2025, 2502.16982, section 2.2)


class TrainState(flax.struct.PyTreeNode):
    """What a training step reads and returns.

    Attributes:
        step: int32, steps done, skipped ones included.
        params: parameters of the network.
        batch_stats: running statistics of its batch norms.
        opt_state: of the optimiser.
        average: moving average of "params" and "batch_stats"; empty if there is none.
        skipped_in_a_row: int32, updates left out since the last one that was made.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    skipped_in_a_row: jax.Array

    @property
    def variables(self) -> dict:
        """The Flax variables that training updates."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict:
        """The Flax variables to evaluate: the average if there is one."""
        return self.average or self.variables

    def starting_from(self, variables: dict) -> "TrainState":
        """The same with other weights and statistics, its average included."""
        average = {name: variables[name] for name in self.average}
        return self.replace(
            params=variables["params"], batch_stats=variables["batch_stats"], average=average
        )


def build_optimizer(
    train: ConfigDict, num_steps: int, shared: SharedParameters = ()
) -> optax.GradientTransformation:
    """Adam, AdamW or SGD whose updates are those of `torch.optim`; or Muon.

    Weight decay is added to the gradient. That of AdamW (Loshchilov, Hutter 2017, 1711.05101) is
    added to Adam's direction instead, and not for biases and arrays with one axis, as the scales of
    norms.

    Muon (Jordan et al. 2024; Liu et al. 2025, 2502.16982) orthogonalises the updates of kernels.
    Biases, norms and embedding tables have those of Adam with Nesterov momentum (NAdam), at the
    same rate. Its weight decay is that of AdamW, of kernels only.

    Args:
        train: `config.train`.
        num_steps: steps of the whole training, for the schedule.
        shared: groups of parameters that hold the same numbers; see `Family`.

    Raises:
        ValueError: unknown optimiser, or a bad schedule.
    """
    if train.optimizer not in OPTIMIZERS:
        raise ValueError(f"train.optimizer must be one of {OPTIMIZERS}; got {train.optimizer!r}.")
    # Always the same parts: a run may resume with another clipping or decay.
    shared_updates = [sum_shared_updates(shared)] if shared else []
    if train.optimizer == "muon":
        return optax.chain(_clipping(train), _muon(train, num_steps), *shared_updates)
    rate = optax.scale_by_learning_rate(learning_rate(train, num_steps))
    if train.optimizer == "adamw":
        decay = optax.add_decayed_weights(train.weight_decay, mask=_decays)
        parts = [_clipping(train), optax.scale_by_adam(), decay, rate]
    else:
        if train.optimizer == "adam":
            direction = optax.scale_by_adam()
        else:
            direction = optax.trace(decay=train.momentum, nesterov=train.nesterov)
        decay = optax.add_decayed_weights(train.weight_decay)
        parts = [_clipping(train), decay, direction, rate]
    return optax.chain(*parts, *shared_updates)


def _muon(train: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    return optax.contrib.muon(
        learning_rate(train, num_steps),
        weight_decay=train.weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=kernel_axes,
    )


def kernel_axes(params: Any) -> Any:
    """Which arrays Muon orthogonalises: kernels, all axes but the last reduced. None for others.

    The kernels of all groups of a `GroupedDense` count as one matrix.
    """

    def axes(path, param):
        name = path[-1].key
        if param.ndim < 2 or name not in KERNELS:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _clipping(train: ConfigDict) -> optax.GradientTransformation:
    if train.grad_clip is None:
        return optax.identity()
    # Not `optax.clip_by_global_norm`, which chooses between two results for each number: LLVM
    # compiles the loops of all updates for both.
    return clip_total_norm(train.grad_clip, train.grad_clip_eps)


def _decays(params: Any) -> Any:
    """True for the arrays that AdamW decays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, param: param.ndim > 1 and path[-1] != jax.tree_util.DictKey("bias"), params
    )


def make_state(
    variables: dict, optimizer: optax.GradientTransformation, *, averaged: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        variables: Flax variables, "params" and "batch_stats".
        optimizer: of `build_optimizer`.
        averaged: whether a moving average is kept (`train.ema_decay`).
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        average={"params": params, "batch_stats": batch_stats} if averaged else {},
        skipped_in_a_row=jnp.int32(0),
    )


class InitProgram:
    """The program that makes the state before the first step; traced once."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        task: Task,
        config: ConfigDict,
    ):
        """Prepares it; the same `config.seed` gives the same state on every host."""
        first = partial(_first_state, model, optimizer, config)
        self._first: Any = jax.jit(first, compiler_options=options_for_one_call())
        self._arguments = jax.random.key(config.seed), task.example_inputs(config)

    def shapes(self) -> TrainState:
        """The state's shapes and types; nothing is compiled."""
        return self._first.eval_shape(*self._arguments)

    def __call__(self) -> TrainState:
        """The state."""
        return self._first(*self._arguments)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, task: Task, config: ConfigDict
) -> TrainState:
    """A fresh state, of `InitProgram`."""
    return InitProgram(model, optimizer, task, config)()


def state_shapes(
    model: nn.Module, optimizer: optax.GradientTransformation, task: Task, config: ConfigDict
) -> TrainState:
    """The shapes and types of `init_state`; nothing is compiled."""
    return InitProgram(model, optimizer, task, config).shapes()


def _first_state(model, optimizer, config, key, inputs) -> TrainState:
    variables = model.init(key, inputs)
    shared = family_of(config).shared_parameters(config)
    variables = {**variables, "params": equal_shared(variables["params"], shared)}
    return make_state(variables, optimizer, averaged=config.train.ema_decay is not None)


def variable_shapes(model: nn.Module, config: ConfigDict) -> dict:
    """Shapes and types of the Flax variables of `build_model(config)`, as checkpoints hold them."""
    inputs = task_type(config).example_inputs(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
