"""Variational dropout: masks by sample, and what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.layers import dropout, dropout_mask, sample_keys


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    keys = sample_keys(jax.random.key(0), 0, 4)
    mask = dropout_mask(keys, 0.3, (4, 20, 20, 10))
    assert mask.dtype == bool and mask.shape == (4, 20, 20, 10)
    assert abs(mask.mean() - 0.7) < 0.02
    x = jnp.arange(1.0, 1 + mask.size).reshape(mask.shape)
    np.testing.assert_allclose(dropout(x, mask, 0.3), np.where(mask, x / 0.7, 0), rtol=1e-6)
    # Also where what is dropped is no number.
    assert jnp.isfinite(dropout(jnp.where(mask, x, jnp.inf), mask, 0.3)).all()


def test_a_sample_has_its_mask_whatever_batch_it_is_in():
    together = dropout_mask(sample_keys(jax.random.key(1), 0, 6), 0.5, (6, 8))
    apart = dropout_mask(sample_keys(jax.random.key(1), 3, 3), 0.5, (3, 8))
    np.testing.assert_array_equal(together[3:], apart)
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_type_is_kept_and_nothing_dropped_passes_a_gradient(dtype):
    mask = jnp.array([[True, False]])
    x = jnp.ones((1, 2), dtype)
    assert dropout(x, mask, 0.5).dtype == dtype
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x, mask, 0.5).sum())(x), [[2, 0]])
