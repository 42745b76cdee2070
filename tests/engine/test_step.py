"""The training step: parts of a batch, memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdeq_jax.engine.state import make_state
from mdeq_jax.engine.step import make_draw, make_train_step, training_config
from mdeq_jax.models import build_model
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks import build_task
from tests.helpers.tiny import SINGLE_SCALE

SIZE = 8


def one_device(config, size=8):
    """The step as one device runs it, a fresh state, and a batch."""
    model = build_model(config)
    optimizer = optax.sgd(0.1)
    step = make_train_step(model, optimizer, build_task(config), config, steps_per_epoch=10)
    mapped = jax.vmap(lambda s, b: step(s, (), b, False)[::2], axis_name=BATCH_AXIS)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(SIZE, size, size, 3)), jnp.float32)
    state = make_state(model.init(jax.random.key(0), images), optimizer)
    batch = {"image": images, "label": jnp.asarray(rng.integers(0, 10, SIZE))}
    return mapped, *jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch))


@pytest.fixture(scope="module")
def accumulated(tiny_config):
    """(state before, state after, report) in one part and in four.

    The images are copies of one, so that batch norm sees the same in every part; labels differ.
    """
    results = {}
    for parts in (1, 4):
        fields = {
            **SINGLE_SCALE,
            "gradient.name": "neumann",
            "train.accumulate_steps": parts,
        }
        step, state, batch = one_device(tiny_config(fields))
        batch = {
            "image": jnp.broadcast_to(batch["image"][:, :1], batch["image"].shape),
            "label": batch["label"],
        }
        results[parts] = (state, *jax.jit(step)(state, batch))
    return results


def test_parts_of_a_batch_have_the_mean_gradient(accumulated):
    (before, one, report), (_, four, reports) = accumulated[1], accumulated[4]
    np.testing.assert_allclose(reports.scalars["loss"], report.scalars["loss"], rtol=1e-6)
    np.testing.assert_allclose(reports.scalars["grad_norm"], report.scalars["grad_norm"], rtol=1e-4)
    change = jax.tree.map(lambda new, old: np.asarray(new - old), one.params, before.params)
    others = jax.tree.map(lambda new, old: np.asarray(new - old), four.params, before.params)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(change))
    assert largest > 1e-3
    chex.assert_trees_all_close(change, others, rtol=1e-7, atol=1e-4 * largest)


def test_parts_of_a_batch_are_reported_together(accumulated):
    (_, _, report), (_, four, reports) = accumulated[1], accumulated[4]
    assert int(four.step[0]) == 1
    assert reports.per_sample["forward/status"].shape == (1, SIZE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), reports.sums, report.sums
    )


@pytest.mark.slow
def test_limits_vary_as_the_config_says(tiny_config):
    fields = {"solver.forward.max_steps": 6, "jacobian.weight": 1.0, "jacobian.frequency": 1.0}
    for above, expected in ((1, {4, 5, 6, 7}), (0, {4, 5, 6})):
        limits = {"train.random_forward_delta": 2, "train.random_forward_above": above}
        config = tiny_config({**fields, **limits})
        assert training_config(config).solver.forward.max_steps == 6 + above
        draw = jax.vmap(make_draw(config, steps_per_epoch=10))
        assert set(draw(jnp.arange(60)).step_budget.tolist()) == expected


def test_memory_grows_by_one_state_a_solver_step(tiny_config):
    """Compiled memory of the whole training step against `solver.forward.max_steps`."""

    def temporary_bytes(max_steps):
        fields = {
            **SINGLE_SCALE,
            "solver.forward.max_steps": max_steps,
            "gradient.name": "one_step",
            "data.image_size": (16, 16),
        }
        step, state, batch = one_device(tiny_config(fields), 16)
        compiled = jax.jit(step).lower(state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = SIZE * 16 * 16 * 8 * 4
    growth = (temporary_bytes(40) - temporary_bytes(20)) / 20
    # Traces and the small triangular matrices of Broyden's inner products are what lies above it.
    assert 0.95 * state_bytes < growth < 1.15 * state_bytes


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"name": "ift"}, {"rel_residual", "status"}),
        ({"name": "reversible"}, {"rel_residual", "status"}),
        ({"name": "shine", "refine_steps": 2}, {"rel_residual", "status"}),
        ({"name": "shine"}, {"rel_residual"}),
        ({"name": "neumann"}, {"rel_residual"}),
        ({"name": "phantom"}, set()),
    ],
)
def test_what_is_reported_of_the_backward_pass(settings, reported, tiny_config):
    """A status wherever something can fail: `reversible` says so when its states drift away."""
    fields = {f"gradient.{name}": value for name, value in settings.items()}
    config = tiny_config({**SINGLE_SCALE, **fields})
    model, optimizer = build_model(config), optax.sgd(0.1)
    step = make_train_step(model, optimizer, build_task(config), config, steps_per_epoch=10)
    images = jax.ShapeDtypeStruct((SIZE, 8, 8, 3), jnp.float32)

    def one_step(images):
        state = make_state(model.init(jax.random.key(0), images), optimizer)
        batch = {"image": images, "label": jnp.zeros(SIZE, jnp.int32)}
        run = jax.vmap(lambda s, b: step(s, (), b, False)[2].per_sample, axis_name=BATCH_AXIS)
        return run(*jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch)))

    report = jax.eval_shape(one_step, images)
    assert {name for name in report if name.startswith("backward/")} == {
        f"backward/{name}" for name in reported
    }


@pytest.mark.slow
def test_a_step_with_pallas_kernels_is_the_same(tiny_config, as_on_gpu):
    """With dropout and the Jacobian loss, which differentiates the pullback."""
    fields = {
        **SINGLE_SCALE,
        "model.dropout": 0.2,
        "model.num_groups": 2,
        "jacobian.weight": 1.0,
        "jacobian.frequency": 1.0,
        "solver.forward.tol": 0.0,
        "solver.backward.tol": 0.0,
    }

    def take(pallas):
        step, state, batch = one_device(tiny_config({**fields, "pallas": pallas}))
        after, report = jax.jit(step)(state, batch)
        return jax.tree.map(jnp.subtract, after.params, state.params), report.scalars

    (change, plain), (ours, scalars) = take(False), as_on_gpu(take, True)
    for name in ("loss", "jacobian_loss", "grad_norm"):
        np.testing.assert_allclose(scalars[name], plain[name], rtol=1e-4, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(change))
    chex.assert_trees_all_close(ours, change, rtol=1e-7, atol=1e-4 * largest)
