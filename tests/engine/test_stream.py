"""Continuous batching of an evaluation: the same numbers, and when it is chosen."""

import jax
import pytest

from mdeq_jax.data import load_dataset
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.engine.stream import StreamStep, stream_step
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import build_task
from tests.helpers.tiny import SINGLE_SCALE

SAME = ("accuracy", "loss", "examples", "steps", "rel_residual", "rel_residual_max", "unconverged")


@pytest.fixture(scope="module")
def config(tiny_config):
    # Some samples are done after a few steps, and some never.
    return tiny_config({**SINGLE_SCALE, "solver.forward.max_steps": 12, "solver.forward.tol": 0.02})


@pytest.fixture(scope="module")
def network(config):
    model, task = build_model(config), build_task(config)
    variables = jax.jit(model.init)(jax.random.key(0), task.example_inputs(config))
    return model, task, devices.replicate(variables)


def test_an_evaluation_has_the_same_numbers(config, network):
    model, task, variables = network
    dataset = load_dataset(config.data)

    def evaluate(choice, budget):
        config.eval.update(continuous_batching=choice, slots=8)
        evaluator = Evaluator(model, task, dataset, config)
        return evaluator(variables), evaluator(variables), evaluator(variables, budget)

    for ours, theirs in zip(evaluate("on", 3), evaluate("off", 3)):
        for name in SAME:
            assert ours[f"eval/{name}"] == pytest.approx(theirs[f"eval/{name}"], rel=1e-4), name
        assert 0 < ours["eval/steps"] < ours["eval/nfe"] <= theirs["eval/nfe"]


def test_auto_needs_enough_examples(config, network):
    model, task, _ = network
    config.eval.update(continuous_batching="auto", slots=None)
    assert isinstance(stream_step(model, task, config, 120, 360), StreamStep)
    assert stream_step(model, task, config, 120, 40) is None
    config.eval.continuous_batching = "off"
    assert stream_step(model, task, config, 120, 360) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval.continuous_batching": "yes"}, "must be one of .*; got 'yes'"),
        ({"eval.slots": 0}, "eval.slots must be at least 1"),
        ({"eval.continuous_batching": "on", "gradient.name": "unroll"}, "'unroll' needs"),
    ],
)
def test_settings_that_cannot_work(fields, message, tiny_config, network):
    model, task, _ = network
    with pytest.raises(ValueError, match=message):
        stream_step(model, task, tiny_config(fields), 120, 360)
