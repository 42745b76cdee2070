"""Sinusoidal features of distances, and the shift from distances to positions.

Dai et al. 2019 (Transformer-XL, 1901.02860), section 3.3 and appendix B.
"""

import jax
import jax.numpy as jnp
import numpy as np


def inverse_frequencies(width: int) -> tuple[float, ...]:
    """1 / 10000^(2i / width) for i < width / 2, rounded to float32 as in released files."""
    exponents = np.arange(0, width, 2) / width
    return tuple(float(f) for f in np.power(10000.0, -exponents).astype(np.float32))


def distance_features(length: int, frequencies: tuple[float, ...], dtype) -> jax.Array:
    """The features of the distances `length` - 1, ..., 1, 0.

    Args:
        length: number of distances.
        frequencies: of `inverse_frequencies(width)`.
        dtype: of the result.

    Returns:
        `[length, width]`: the sines of all frequencies, then the cosines.
    """
    distances = jnp.arange(length - 1, -1, -1, dtype=dtype)
    angles = distances[:, None] * jnp.asarray(frequencies, dtype)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def shift_to_positions(scores: jax.Array) -> jax.Array:
    """Scores by distance to scores by key, without a gather.

    Query i of T is at position K - T + i. Its key j is at distance d = K - T + i - j, whose score
    is in column K - 1 - d. One column of padding and a reshape move row i by T - 1 - i columns.

    Args:
        scores: `[..., T, K]`, column c for the distance K - 1 - c.

    Returns:
        `[..., T, K]`, column j for key j. Keys after the query hold meaningless numbers.
    """
    *outer, queries, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(outer) + 1) + [(1, 0)])
    rows = padded.reshape(*outer, keys + 1, queries)
    return rows[..., 1:, :].reshape(*outer, queries, keys)
