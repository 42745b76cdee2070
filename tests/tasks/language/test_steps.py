"""Single steps of a small language model: devices, parts of a batch, numbers that are not finite.

A step is mapped with `jax.vmap`, whose rows are as many devices.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdeq_jax.data import load_dataset
from mdeq_jax.engine.state import init_state
from mdeq_jax.engine.step import make_train_step
from mdeq_jax.models import build_model
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.language.task import LanguageModel

BATCH, STEPS = 8, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Solves of an untrained cell amplify the rounding of float32, which depends on the split."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def batches(language_config):
    """The first batches of the training text; the last one is partly padding."""
    columns = load_dataset(language_config().data).train.columns(BATCH)
    found = [columns.make_batch(step, np.arange(BATCH))[0] for step in range(STEPS)]
    found[-1]["valid"][:, 5:] = False
    found[-1]["valid"][:3] = False
    return [jax.tree.map(jnp.asarray, batch) for batch in found]


def prepare(config):
    """The config with what its data decide, its model and task, and a fresh state."""
    config = LanguageModel(config).complete(config, load_dataset(config.data))
    model, task, optimizer = build_model(config), build_task(config), optax.sgd(0.5)
    state = init_state(model, optimizer, task, config)
    state = state.replace(params=jax.tree.map(lambda x: x.astype(float), state.params))
    return model, task, state, make_train_step(model, optimizer, task, config, steps_per_epoch=10)


def take_steps(config, batches, devices=1, poison=False):
    """State, carry in the order of the batch, and losses after steps on some devices."""
    model, task, state, step = prepare(config)
    if poison:
        state = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    run = jax.jit(jax.vmap(partial(step, pretraining=False), axis_name=BATCH_AXIS))
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (devices, *x.shape)), state)

    def split(tree):
        return jax.tree.map(lambda x: x.reshape(devices, len(x) // devices, *x.shape[1:]), tree)

    carry, reports = split(task.initial_carry(model, BATCH)), []
    for batch in batches:
        state, carry, report = run(state, carry, split(batch))
        reports.append(report)
    carry = jax.tree.map(lambda x: np.asarray(x.reshape(BATCH, *x.shape[2:])), carry)
    return jax.tree.map(lambda x: np.asarray(x[0]), (state, reports)), carry


def assert_close(results, expected):
    ((state, reports), carry), ((other, other_reports), other_carry) = results, expected
    for report, reference in zip(reports, other_reports):
        np.testing.assert_allclose(report.scalars["loss"], reference.scalars["loss"], rtol=1e-9)
        np.testing.assert_allclose(report.sums["count"], reference.sums["count"], rtol=0)
        np.testing.assert_allclose(report.sums["loss"], reference.sums["loss"], rtol=1e-9)
    for tree, reference in ((state.params, other.params), (carry, other_carry)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), tree, reference
        )


@pytest.fixture(scope="module")
def exact(language_config):
    """Makes configs with long solves."""
    solver = {"max_steps": 30, "tol": 1e-6}
    both = {f"solver.{way}.{k}": v for way in ("forward", "backward") for k, v in solver.items()}
    return lambda family="deq_transformer", /, **fields: language_config(
        family, **{**both, **fields}
    )


@pytest.fixture(scope="module")
def one_device(exact, batches):
    return take_steps(exact(), batches)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_devices_agree(exact, batches, one_device, devices):
    assert_close(take_steps(exact(), batches, devices), one_device)


def test_parts_of_a_batch_agree(exact, batches, one_device):
    """Parts with as many valid targets each, whose mean losses are averaged."""
    even = batches[:2]
    whole = take_steps(exact(), even)
    assert_close(take_steps(exact(**{"train.accumulate_steps": 2}), even), whole)


def test_the_loss_is_the_mean_over_valid_targets(one_device, batches):
    (_, reports), _ = one_device
    for report, batch in zip(reports, batches):
        assert report.sums["count"] == np.sum(batch["valid"])
        np.testing.assert_allclose(
            report.scalars["loss"], report.sums["loss"] / report.sums["count"], rtol=1e-5
        )


def test_memory_is_emptied_where_a_text_begins(exact, batches):
    """The third batch begins a text in half of the rows, which then forget the first two."""
    begins = {**batches[2], "start": jnp.arange(BATCH) < 4}
    _, carry = take_steps(exact(), [*batches[:2], begins])
    np.testing.assert_array_equal(carry.filled, [8] * 4 + [12] * 4)
    np.testing.assert_array_equal(carry.z[:4, :4], 0)
    assert np.all(np.any(carry.z[4:, :4], axis=(1, 2)))


@pytest.mark.slow
def test_without_a_memory(exact, batches):
    """Arrays without elements are split, too."""
    fields = {"model.transformer.mem_len": 0, "train.accumulate_steps": 2}
    _, carry = take_steps(exact(**fields), batches[:1], devices=2)
    assert carry.z.shape == (BATCH, 0, 16)


def test_a_step_that_is_not_finite_leaves_no_memory(exact, batches):
    ((state, reports), carry) = take_steps(exact(), batches[:1], poison=True)
    assert reports[0].scalars["skipped"] == 1 and state.skipped_in_a_row == 1
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(carry))
