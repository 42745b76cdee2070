"""Parameters that share their numbers, and clipping as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdeq_jax.configs import default
from mdeq_jax.engine.released_recipe import equal_shared
from mdeq_jax.engine.state import build_optimizer

SHARED = ((("a", "w"), ("b", "w")),)


def params():
    return {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.full(2, 3.0), "bias": jnp.full(1, 5.0)}}


def test_shared_parameters_start_equal():
    equal = equal_shared(params(), SHARED)
    np.testing.assert_array_equal(equal["b"]["w"], equal["a"]["w"])
    np.testing.assert_array_equal(equal["b"]["bias"], [5.0])


def test_shared_parameters_move_by_both_updates():
    config = default.get_config().train
    config.learning_rate, config.schedule = 0.1, "constant"
    start = equal_shared(params(), SHARED)
    gradients = jax.tree.map(jnp.ones_like, start)
    moved = {}
    for shared in ((), SHARED):
        optimizer = build_optimizer(config, 10, shared)
        updates, _ = optimizer.update(gradients, optimizer.init(start), start)
        moved[shared] = optax.apply_updates(start, updates)
    np.testing.assert_allclose(moved[()]["a"]["w"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(moved[SHARED]["a"]["w"], 0.8, rtol=1e-5)
    np.testing.assert_array_equal(moved[SHARED]["a"]["w"], moved[SHARED]["b"]["w"])
    np.testing.assert_allclose(moved[SHARED]["b"]["bias"], 4.9, rtol=1e-5)
