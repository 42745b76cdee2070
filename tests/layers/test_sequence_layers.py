"""Causal convolutions, relative positions and weight-normalised kernels against definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.layers import DenseWeights, Kernel, apply_dense
from mdeq_jax.layers.causal_conv import causal_conv
from mdeq_jax.layers.relative_position import (
    distance_features,
    inverse_frequencies,
    shift_to_positions,
)


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("with_history", [False, True])
def test_causal_conv(size, dilation, with_history, x64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 7, 3)), rng.normal(size=(size, 3, 4))
    history = rng.normal(size=(2, 1, 3)) if with_history else np.zeros((2, 1, 3))
    expected = np.zeros((2, 7, 4))
    for t in range(7):
        for j in range(size):
            source = t - (size - 1 - j) * dilation
            expected[:, t] += (x[:, source] if source >= 0 else history[:, 0]) @ kernel[j]
    arguments = [jnp.asarray(x), jnp.asarray(kernel)]
    actual = causal_conv(*arguments, jnp.asarray(history) if with_history else None, dilation)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_shift_to_positions():
    queries, keys = 3, 5
    by_distance = jnp.broadcast_to(jnp.arange(keys - 1, -1, -1)[None], (queries, keys))
    shifted = shift_to_positions(by_distance[None, None])[0, 0]
    for i in range(queries):
        for j in range(keys - queries + i + 1):
            assert shifted[i, j] == keys - queries + i - j


def test_distance_features(x64):
    features = distance_features(4, inverse_frequencies(6), jnp.float64)
    frequencies = np.float32(10000.0 ** (-np.arange(0, 6, 2) / 6)).astype(np.float64)
    for column, distance in enumerate((3, 2, 1, 0)):
        angles = distance * frequencies
        expected = np.concatenate([np.sin(angles), np.cos(angles)])
        np.testing.assert_allclose(features[column], expected, rtol=1e-12)


def test_weight_norm():
    model = Kernel((2, 3, 4), weight_norm=True)
    variables = model.init(jax.random.key(0))
    v, g = variables["params"]["v"], variables["params"]["g"]
    assert np.abs(v).max() <= 6**-0.5  # PyTorch's default, by the fan-in
    np.testing.assert_allclose(model.apply(variables), v, rtol=1e-6)
    doubled = {"params": {"v": 3 * v, "g": 2 * g}}
    np.testing.assert_allclose(model.apply(doubled), 2 * v, rtol=1e-6)


def test_dense():
    model = DenseWeights((3, 2))
    variables = model.init(jax.random.key(0))
    weights = model.apply(variables)
    x = jnp.ones((1, 4, 3))
    np.testing.assert_allclose(
        apply_dense(x, weights), jnp.tile(weights["kernel"].sum(0), (1, 4, 1)), rtol=1e-6
    )
    assert "bias" not in DenseWeights((3, 2), use_bias=False).init(jax.random.key(0))["params"]
