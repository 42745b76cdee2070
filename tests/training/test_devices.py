"""One device and four compute the same, in float64, where rounding cannot hide a mistake."""

import json
import subprocess
import sys

import numpy as np

COMPARE = """
import json, sys
import jax
import numpy as np

from configs import digits
from conftest import TINY, override
from mdeq_jax.data import TrainLoader, load_dataset, shard_batch
from mdeq_jax.models import build_model
from mdeq_jax.training.state import build_optimizer, init_state
from mdeq_jax.training.step import make_train_step
from mdeq_jax.training.tasks import build_task

config = override(digits.get_config(), {**TINY, "jacobian.frequency": 1.0, "model.dropout": 0.1})
model, task = build_model(config), build_task(config)
optimizer = build_optimizer(config.train, 100)

def to_float64(tree):
    return jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, tree)

losses = {}
for count in (1, 4):
    step = jax.pmap(
        make_train_step(model, optimizer, task, config, 10),
        axis_name="batch", devices=jax.devices()[:count], static_broadcasted_argnums=(2,),
    )
    state = to_float64(init_state(model, optimizer, 0, (8, 8)))
    state = jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), state)
    loader, losses[count] = TrainLoader(load_dataset(config.data), 128), []
    for _ in range(6):
        state, report = step(state, shard_batch(to_float64(next(loader)), count), False)
        losses[count].append(float(report["loss"][0]))
print(json.dumps(losses))
"""


def test_one_device_and_four(run_script):
    result = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={
            **run_script.environment(devices=4),
            "JAX_ENABLE_X64": "true",
            "PYTHONPATH": f"{run_script.root}:{run_script.root / 'tests' / 'training'}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    losses = json.loads(result.stdout)
    assert losses["1"][-1] < losses["1"][0]
    np.testing.assert_allclose(losses["4"], losses["1"], rtol=1e-10)
