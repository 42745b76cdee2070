"""A network of the smallest size on the embedded digits, and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, override

from configs import digits

REPOSITORY = Path(__file__).parents[2]


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
