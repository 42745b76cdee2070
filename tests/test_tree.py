import chex
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.tree import ravel_batch


def test_round_trip_keeps_samples_apart():
    scales = (jnp.arange(24.0).reshape(2, 2, 2, 3), jnp.arange(8.0).reshape(2, 1, 1, 4))
    flat, unravel = ravel_batch(scales)
    assert flat.shape == (2, 16)
    np.testing.assert_array_equal(flat[1, :12], np.arange(12, 24))
    chex.assert_trees_all_equal(unravel(flat), scales)


def test_unravel_takes_another_batch_size_and_type():
    _, unravel = ravel_batch((jnp.zeros((2, 3)), jnp.zeros((2, 2, 2))))
    parts = unravel(jnp.ones((5, 7), jnp.bfloat16))
    chex.assert_shape(parts, [(5, 3), (5, 2, 2)])
    chex.assert_type(parts, jnp.bfloat16)


@pytest.mark.parametrize("state", [(), (jnp.zeros((2, 3)), jnp.zeros((3, 3))), jnp.zeros(())])
def test_refuses_states_without_a_common_batch(state):
    with pytest.raises(ValueError, match=r"batch axis"):
        ravel_batch(state)
