"""Continuous batching of an evaluation: the same numbers, and when it is chosen."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mdeq_jax.data import load_dataset
from mdeq_jax.engine.eval_steps import EvalSteps
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.solvers import Status, step_history
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.idle_time import IdleTime
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


def test_an_evaluation_has_the_same_numbers(config, network, monkeypatch):
    model, task, variables = network
    dataset = load_dataset(config.data)

    def evaluate(choice, budget):
        config.eval.update(continuous_batching=choice, slots=8)
        evaluator = Evaluator(model, task, dataset, config)
        return evaluator(variables), evaluator(variables), evaluator(variables, budget)

    # "auto" changes to continuous batching after the second of the three batches.
    monkeypatch.setattr(IdleTime, "is_worth_compiling", lambda self, _: len(self._seconds) == 2)
    expected = evaluate("off", 3)
    monkeypatch.setattr(step_history, "LARGE", 0)  # slots read their own rows
    for choice in ("on", "auto"):
        for ours, theirs in zip(evaluate(choice, 3), expected):
            for name in SAME:
                assert ours[f"eval/{name}"] == pytest.approx(theirs[f"eval/{name}"], rel=1e-4), name
            assert 0 < ours["eval/steps"] < ours["eval/nfe"] <= theirs["eval/nfe"]
    assert ours["eval/nfe"] == theirs["eval/nfe"]  # all of them make the three steps


@pytest.mark.parametrize(
    ("idle", "seconds", "left", "worth"),
    [
        (0.5, (12.0, 2.0), 13, True),  # they save 10.4 s, and compiling takes 10 s
        (0.5, (12.0, 2.0), 12, False),
        (0.5, (12.0,), 100, False),  # nobody knows how long a batch takes
        (0.1, (2.0, 2.0), 100, False),  # steps on slots take longer
    ],
)
def test_auto_compiles_what_saves_time(idle, seconds, left, worth):
    time, nfe = IdleTime(), 41
    converged = {"status": np.full(4, Status.CONVERGED), "steps": np.full(4, (1 - idle) * nfe - 1)}
    never = {"status": np.full(4, Status.MAX_STEPS), "steps": np.full(4, 3)}
    for seconds_of_batch in seconds:
        rows = {**converged, "nfe": np.full(4, nfe), "mask": np.ones(4)}
        time.add(seconds_of_batch, rows)
    assert time.is_worth_compiling(left) == worth
    for _ in range(20):  # these need all their evaluations
        time.add(seconds[-1], {**never, "nfe": np.full(4, nfe), "mask": np.ones(4)})
    assert not time.is_worth_compiling(left)


def test_auto_counts_the_batches_left_of_each_evaluation(config, network, monkeypatch):
    left = []
    monkeypatch.setattr(IdleTime, "is_worth_compiling", lambda self, n: left.append(n))
    config.eval.update(continuous_batching="auto", slots=8)
    model, task, variables = network
    evaluator = Evaluator(model, task, load_dataset(config.data), config)
    for _ in range(2):
        evaluator(variables)
    assert len(left) % 2 == 0 and left == 2 * list(range(len(left) // 2))[::-1]


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
        EvalSteps(model, task, tiny_config(fields), 120)


@pytest.mark.slow
def test_four_devices_each_have_a_queue():
    """The same numbers in a process with four simulated devices."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    test = f"{__file__}::test_an_evaluation_has_the_same_numbers"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", test],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "1 passed" in result.stdout, result.stdout[-3000:]
