"""The core works without the extras, and a room that needs one reports which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# What `pip install mdeq_jax` does not install. (Flax itself needs absl-py, optax and orbax.)
ABSENT = (
    "chex",
    "cv2",
    "grain",
    "matplotlib",
    "ml_collections",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
)
HIDE = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"  # importing them fails
CORE = """
import jax
import jax.numpy as jnp
import mdeq_jax.convert, mdeq_jax.layers, mdeq_jax.models, mdeq_jax.runtime.compilation
from mdeq_jax.implicit import equilibrium
from mdeq_jax.solvers import broyden

def loss(x):
    z, _ = equilibrium(lambda params, z, x: jnp.cos(z) / 2 + x, {}, x, x, f_solver=broyden)
    return z.sum()

jax.grad(loss)(jnp.ones((2, 3)))
"""
ROOMS = """
import importlib
for room in ("data", "viz", "tasks", "engine", "diagnostics", "training"):
    try:
        importlib.import_module(f"mdeq_jax.{room}")
    except ImportError as error:
        print(room, error)
"""


@pytest.fixture(scope="module")
def without_extras():
    done = subprocess.run(
        [sys.executable, "-c", HIDE + CORE + ROOMS],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("room", ["data", "viz", "tasks", "engine", "diagnostics", "training"])
def test_a_room_names_its_extra(room, without_extras):
    message = without_extras[room]
    assert "which the extra 'train' installs" in message
    assert 'pip install "mdeq_jax[train]"' in message
