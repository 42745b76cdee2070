"""Fourteen training steps of the original's own program, repeated by this project's train step.

`mdeq_training_trace.npz` holds its losses and weights in float64: five steps of the pretraining
phase, then nine of the equilibrium, with Adam and a cosine schedule. The folder's README describes
them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cifar10_tiny
from mdeq_jax.convert import convert_state_dict, export_state_dict, load_torch_file
from mdeq_jax.data.sets.cifar10 import MEAN, STD
from mdeq_jax.engine.state import TrainState, build_optimizer, make_state
from mdeq_jax.engine.step import make_train_step
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import build_task
from tests.helpers.tiny import override

BATCH, PRETRAIN_STEPS, STEPS, SCHEDULE_STEPS = 8, 5, 14, 40
FIELDS = {
    "model.dropout": 0.0,
    "jacobian.weight": 0.0,
    "jacobian.frequency": 0.0,
    "train.optimizer": "adam",
    "train.learning_rate": 5e-4,
    "train.end_learning_rate": 1e-6,
    "train.weight_decay": 2.5e-3,
    "train.schedule": "cosine",
    "train.warmup_steps": 0,
    "train.batch_size": BATCH,
    "train.pretrain_steps": PRETRAIN_STEPS,
    "train.pretrain_layers": 4,
    "train.random_forward_delta": 0,
} | {
    f"solver.{way}.{field}": value
    for way in ("forward", "backward")
    for field, value in {"name": "broyden", "max_steps": 90, "tol": 1e-11}.items()
}


@pytest.fixture(scope="module")
def trace(reference_dir):
    with np.load(reference_dir / "mdeq_training_trace.npz") as file:
        return dict(file)


class Run(NamedTuple):
    """Some steps of training: the losses, the replicated state after them, and how to go on."""

    losses: np.ndarray
    state: TrainState
    config: ConfigDict
    step: Callable

    def take(self, trace, first: int, last: int, *, pretraining: bool) -> "Run":
        """Takes the steps from `first` to before `last`."""
        state, losses = self.state, []
        for n in range(first, last):
            rows = slice(n * BATCH, (n + 1) * BATCH)
            images = (trace["x"][None, rows] / 255 - np.asarray(MEAN)) / np.asarray(STD)
            batch = {"image": images, "label": trace["y"][None, rows].astype(np.int32)}
            state, _, report = self.step(state, (), batch, pretraining)
            losses.append(devices.unreplicate(report.scalars)["loss"])
        return self._replace(state=state, losses=np.asarray(losses))

    def assert_weights_close(self, trace, prefix):
        """Every tensor to 1e-6 in the Euclidean norm: the converter rounds to float32."""
        exported = export_state_dict(devices.unreplicate(self.state).variables, self.config)
        keys = [key.removeprefix(prefix) for key in trace if key.startswith(prefix)]
        keys = [key for key in keys if not key.endswith("num_batches_tracked")]
        assert len(keys) > 50
        for key in keys:
            expected = trace[prefix + key]
            error = np.linalg.norm(exported[key] - expected) / np.linalg.norm(expected)
            assert error < 1e-6, f"{key}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def pretrained(reference_dir, trace):
    """The steps of the pretraining phase."""
    jax.config.update("jax_enable_x64", True)
    config = override(cifar10_tiny.get_config(), FIELDS)
    optimizer = build_optimizer(config.train, SCHEDULE_STEPS)
    weights = load_torch_file(reference_dir / "mdeq_training_trace_initial.pkl")
    variables = convert_state_dict(weights, config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), variables)
    step = devices.pmap(
        make_train_step(build_model(config), optimizer, build_task(config), config, 10),
        static_argnums=(3,),
    )
    state = devices.replicate(make_state(variables, optimizer))
    start = Run(np.zeros(0), state, config, step)
    yield start.take(trace, 0, PRETRAIN_STEPS, pretraining=True)
    jax.config.update("jax_enable_x64", False)


def test_pretraining(pretrained, trace):
    assert pretrained.losses.dtype == np.float64
    np.testing.assert_allclose(pretrained.losses, trace["losses"][:PRETRAIN_STEPS], rtol=1e-10)
    pretrained.assert_weights_close(trace, f"step{PRETRAIN_STEPS}/")


@pytest.mark.slow
def test_equilibrium(pretrained, trace):
    trained = pretrained.take(trace, PRETRAIN_STEPS, STEPS, pretraining=False)
    np.testing.assert_allclose(trained.losses, trace["losses"][PRETRAIN_STEPS:], rtol=1e-10)
    trained.assert_weights_close(trace, f"step{STEPS}/")
