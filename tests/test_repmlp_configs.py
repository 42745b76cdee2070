"""The configs of RepMLP and RepMLPNet: they build, and their headers hold what they cost."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.multiply_adds import of_config
from mdeq_jax.convert.families import WEIGHT_NAMES, describe
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.engine.state import build_optimizer
from mdeq_jax.models import build_model
from mdeq_jax.tasks import build_task

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("repmlp*.py"))
PUBLISHED = {  # multiply-adds in 1e9
    "repmlpnet_t224": 2.8,
    "repmlpnet_t256": 4.2,
    "repmlpnet_b224": 6.7,
    "repmlpnet_b256": 9.6,
    "repmlpnet_d256": 8.6,
    "repmlpnet_l256": 11.5,
}
LARGE = ("repmlpnet_b256", "repmlpnet_d256", "repmlpnet_l256")  # many blocks take long to trace


def load(name):
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(), module.__doc__


def deployed(config):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.deployed = True
    return config


def parameters(config):
    images = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
    variables = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_all_are_here():
    assert len(CONFIGS) == 10 and set(PUBLISHED) < set(CONFIGS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in CONFIGS]
)
def test_header_and_settings(name):
    config, header = load(name)
    assert config.name == name and config.is_locked
    build_task(config)
    assert learning_rate(config.train, 500_400)(0) < config.train.learning_rate * 1.001
    build_optimizer(config.train, 500_400)
    assert f"    python train.py --config=configs/{name}.py" in header
    assert f"    python deploy.py --config=configs/{name}.py" in header
    if name == "repmlp_digits":
        return
    for part in ("Paper: ", "Published: "):
        assert part in header
    forms = config, deployed(config)
    trained, merged = (parameters(form) for form in forms)
    assert f"Cost: {trained:,} parameters, {merged:,} deployed; " in header
    trained, merged = (of_config(form) / 1e9 for form in forms)
    assert f"image: {trained:.3f} G in training form, {merged:.3f} G deployed" in header
    if name in PUBLISHED:
        assert abs(merged - PUBLISHED[name]) < 0.1


@pytest.mark.parametrize(
    "name", [n for n in CONFIGS if n not in ("repmlp_cifar10", "repmlp_digits")]
)
def test_the_converter_recognises_the_network(name):
    config, _ = load(name)
    for form, override in ((config, ""), (deployed(config), " --config.model.deployed=True")):
        table = WEIGHT_NAMES[config.model.name].table(form)
        zeros = {entry.torch_name: np.broadcast_to(np.float32(0), entry.shape) for entry in table}
        assert describe(zeros)[1].text == f"configs/{name}.py{override}"
