"""The parts of a training step's update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdeq_jax import hardware
from mdeq_jax.engine.released_recipe import clip_total_norm
from mdeq_jax.engine.update import update_if


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
