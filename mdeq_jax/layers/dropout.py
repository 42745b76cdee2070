"""Variational dropout: one mask a forward pass, the same at every step of the solver."""

import jax
import jax.numpy as jnp


def dropout_mask(key: jax.Array, rate: float, shape: tuple[int, ...], dtype=jnp.float32):
    """A mask of 0 and 1 / (1 - rate) to multiply with (Gal, Ghahramani 2016).

    Args:
        key: random key.
        rate: probability of a zero, in [0, 1).
        shape: of the mask.
        dtype: of the mask.
    """
    return jax.random.bernoulli(key, 1 - rate, shape).astype(dtype) / (1 - rate)
