"""Settings and fixtures of all tests: strict ranks, a compilation cache, optional float64."""

import os
import subprocess
import sys
from pathlib import Path

import jaxlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests spend their time in the compiler, so it optimises little, and emits loops by its older
# and quicker way (an option that other versions ignore). The last flag keeps YNNPACK's
# convolutions, which `choose_convolutions` turns off: without them, float64 takes 100 times as
# long.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    + " --xla_cpu_experimental_ynn_fusion_type=+individual_convolution"
    * (jaxlib.__version__ == "0.10.2"),
)

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from configs import default, digits
from mdeq_jax import hardware
from tests.helpers.synthetic_images import encode, picture, write
from tests.helpers.tiny import TINY, override

REPOSITORY = Path(__file__).parent.parent
CACHE = REPOSITORY / ".jax_cache"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def x64():
    """Runs the test in float64."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The figures of the original implementation."""
    path = REPOSITORY.parent / "shared" / "reference"
    if not path.exists():
        pytest.skip(f"the original's figures are not here ({path})")
    return path


@pytest.fixture
def as_on_gpu():
    """Calls a function as it is computed on GPUs, with Pallas kernels interpreted."""

    def call(function, *args):
        with hardware.compiling_for("gpu", interpret=True):
            return function(*args)

    return call


@pytest.fixture
def lowered_for_a_gpu():
    """The StableHLO of a function for an H200, which need not be there; not compiled."""

    def lower(function, *shapes) -> str:
        gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
        mesh = AbstractMesh((), (), abstract_device=gpu)
        with hardware.compiling_for("gpu"), use_abstract_mesh(mesh):
            traced = jax.jit(function).trace(*shapes)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


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
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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


@pytest.fixture
def data_config():
    """Returns `config.data` with the given fields changed."""

    def make(**fields):
        config = default.get_config().lock().data
        config.update(fields)
        return config

    return make


@pytest.fixture
def image_folder(tmp_path):
    """A small image folder: 3 classes, 6 training and 3 validation images each."""
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cow")):
            for i in range(count):
                image = picture(40 + i, 50 - i, seed=100 * label + i)
                write(tmp_path / split / name / f"{i}.jpg", encode(".jpg", image))
    return tmp_path
