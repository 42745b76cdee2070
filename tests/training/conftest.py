"""A network of the smallest size on the embedded digits, and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import digits

REPOSITORY = Path(__file__).parents[2]

# As overrides of configs/digits.py: seconds to compile, and not meant to learn well.
TINY = {
    "model.channels": (8, 8),
    "model.num_groups": 4,
    "model.expansion": 2,
    "model.head_channels": (2, 4),
    "model.final_channels": 16,
    "solver.forward.max_steps": 5,
    "solver.backward.max_steps": 5,
    "train.pretrain_steps": 3,
    "train.pretrain_layers": 2,
    "train.epochs": 1.0,
    "data.augment": False,
    "train.batch_size": 128,
    "eval.batch_size": 120,
    "eval.every_epochs": 1.0,
    "checkpoint.every_epochs": 1.0,
}


def override(config, fields):
    """`config` with `{"a.b": value}` set."""
    for name, value in fields.items():
        *path, last = name.split(".")
        part = config
        for key in path:
            part = part[key]
        part[last] = value
    return config


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the config of the tiny network, with further fields set."""

    def make(fields=()):
        return override(digits.get_config(), {**TINY, **dict(fields)})

    return make


@pytest.fixture(scope="session")
def run_script():
    """Runs a script of the repository, with the tiny settings, as a person would."""

    def command(script, workdir, **fields):
        flags = [f"--config.{name}={value}" for name, value in {**TINY, **fields}.items()]
        return [
            sys.executable,
            str(REPOSITORY / script),
            f"--config={REPOSITORY / 'configs' / 'digits.py'}",
            f"--workdir={workdir}",
            *flags,
        ]

    def environment(devices=1):
        return {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
        }

    def run(script, workdir, *, devices=1, **fields):
        return subprocess.run(
            command(script, workdir, **fields),
            env=environment(devices),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )

    run.command, run.environment, run.root = command, environment, REPOSITORY
    return run
