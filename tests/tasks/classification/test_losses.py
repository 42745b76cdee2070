"""Losses of classification."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.tasks.classification.losses import correct_top_k, cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing, x64):
    torch = pytest.importorskip("torch")
    logits, labels = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 3, 1, 1, 2, 0])
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none", label_smoothing=smoothing
    )
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(ours, theirs.numpy())


def test_top_k_gives_nothing_for_a_tie():
    logits = jnp.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    labels = jnp.array([0, 1, 0])
    np.testing.assert_array_equal(correct_top_k(logits, labels, 1), [1, 0, 0])
    np.testing.assert_array_equal(correct_top_k(logits, labels, 3), [1, 1, 1])
    np.testing.assert_array_equal(correct_top_k(jnp.full((2, 3), jnp.nan), labels[:2], 1), [0, 0])
