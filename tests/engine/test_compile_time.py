"""The estimate that is printed before a step is compiled."""

import jax.numpy as jnp
import pytest

from configs import cifar10_tiny, digits
from mdeq_jax.engine import compile_time

VARIABLES = {"params": {"a": jnp.zeros(1), "b": jnp.zeros(1)}}


def estimate(monkeypatch, step, config) -> float:
    """Seconds, for a model with two parameter tensors."""
    monkeypatch.setattr(compile_time, "first_call", lambda what, program, seconds, log: seconds)
    return compile_time.announced(step, VARIABLES, config)


def test_quick_programs_take_less(monkeypatch):
    config = digits.get_config()
    quick = estimate(monkeypatch, "evaluation", config)
    with config.unlocked():
        config.quick_compilation = False
    assert quick == pytest.approx(0.75 * estimate(monkeypatch, "evaluation", config))


def test_the_jacobian_loss_is_more_to_compile(monkeypatch):
    without = estimate(monkeypatch, "training", cifar10_tiny.get_config())
    config = cifar10_tiny.get_config()
    with config.unlocked():
        config.jacobian.weight, config.jacobian.frequency = 1.0, 0.1
    assert estimate(monkeypatch, "training", config) > without
