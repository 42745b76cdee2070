"""The parts of a training step's update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mdeq_jax import hardware
from mdeq_jax.engine.released_recipe import clip_total_norm
from mdeq_jax.engine.state import OPTIMIZERS, build_optimizer, make_state
from mdeq_jax.engine.update import make_update, update_if


@pytest.mark.parametrize("max_norm", [0.5, 100.0, np.inf])
def test_clipping_without_a_constant_is_that_of_optax(max_norm):
    a, b = jax.random.split(jax.random.key(0))
    grads = {"a": jax.random.normal(a, (7, 5)), "b": jax.random.normal(b, (11,))}
    transformation, reference = clip_total_norm(max_norm, 0.0), optax.clip_by_global_norm(max_norm)
    expected, _ = reference.update(grads, reference.init(grads))
    state = transformation.init(grads)
    for given in ({}, {"grad_norm": optax.tree.norm(grads)}):
        clipped, _ = transformation.update(grads, state, **given)
        chex.assert_trees_all_close(clipped, expected, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, grads)
    chex.assert_trees_all_equal(transformation.update(zero, state)[0], zero)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_is_that_of_the_step_after_updates_were_left_out(name):
    train = default.get_config().train
    train.optimizer, train.learning_rate, train.schedule = name, 1.0, "polynomial"
    train.decay_power, train.weight_decay = 1.0, 0.0
    optimizer = build_optimizer(train, 10)
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    state = make_state({"params": params, "batch_stats": {}}, optimizer)
    update = make_update(optimizer, None)

    def change(step):
        """What the first update moves the parameters by, at this step."""
        new = update(True, state.replace(step=jnp.int32(step)), params, jnp.float32(1), {})
        return jax.tree.map(jnp.subtract, new["params"], params)

    # At step 6 of 10, the rate has fallen to 0.4.
    expected = jax.tree.map(lambda x: 0.4 * x, change(0))
    chex.assert_trees_all_close(change(6), expected, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("condition", [True, False])
def test_an_update_that_is_left_out_changes_nothing(platform, condition):
    kept = {"x": jnp.arange(3.0)}

    def step(condition, kept):
        return update_if(condition, lambda: {"x": kept["x"] + 1}, kept)

    with hardware.compiling_for(platform):
        new = jax.jit(step)(condition, kept)
        branches = str(jax.make_jaxpr(step)(condition, kept)).count("cond[")
    assert new["x"].tolist() == [i + condition for i in range(3)]
    assert branches == (platform == "cpu")
