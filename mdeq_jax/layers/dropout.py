"""Variational dropout: one mask a forward pass, the same at every step of the solver."""

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, first_sample: int | jax.Array, count: int) -> jax.Array:
    """One random key for each sample, from its index in the global batch.

    The random numbers drawn from them do not depend on how the batch is split over devices.

    Args:
        key: random key of the batch.
        first_sample: index of this device's first sample in the global batch.
        count: samples on this device.

    Returns:
        `[count]` keys.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first_sample + jnp.arange(count))


def dropout_mask(keys: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """The mask of elements that `dropout` keeps, as bool (Gal, Ghahramani 2016).

    Args:
        keys: `[B]` random keys, one per sample.
        rate: probability of False, in [0, 1).
        shape: shape of the mask, `[B, ...]`.
    """
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape[1:]))(keys)


def dropout(x: jax.Array, mask: jax.Array, rate: float) -> jax.Array:
    """x / (1 - rate) where `mask` is True, else zero."""
    return jnp.where(mask, x * (1 / (1 - rate)), 0)
