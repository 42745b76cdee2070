"""Losses over the pixels of a batch, the same however devices split it.

A loss here is a device's share: its mean over the devices is the loss of the whole batch, and so
is the mean of its gradients. Its divisor and the choice of hard pixels are computed over all
devices and are constants for the derivative.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.parallel import gather_over_devices


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array, ignore_label: int) -> jax.Array:
    """Cross-entropy of each pixel, in nats; 0 where the label is ignored.

    Args:
        logits: `[..., C]`.
        labels: `[...]` int, in [0, C) or `ignore_label`.
        ignore_label: of pixels that do not count.

    Returns:
        `[...]`.
    """
    counted = labels != ignore_label
    of_label = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(counted, labels, 0)[..., None], axis=-1
    )[..., 0]
    return jnp.where(counted, -of_label, 0.0)


def pixel_weights(
    labels: jax.Array, ignore_label: int, class_weights: tuple[float, ...] | None, dtype
) -> jax.Array:
    """Weight of each pixel: that of its class (1 without `class_weights`), 0 where ignored.

    Args:
        labels: `[...]` int, in [0, C) or `ignore_label`.
        ignore_label: of pixels that do not count.
        class_weights: C of them.
        dtype: of the result.

    Returns:
        `[...]`.
    """
    counted = labels != ignore_label
    if class_weights is None:
        return counted.astype(dtype)
    return jnp.where(counted, jnp.asarray(class_weights, dtype)[jnp.where(counted, labels, 0)], 0.0)


def hard_pixels(
    losses: jax.Array,
    counted: jax.Array,
    *,
    threshold: float,
    min_kept: int,
) -> jax.Array:
    """Online hard example mining: the pixels that a training step learns from.

    These are the pixels whose class is predicted with a probability under `threshold`, and in any
    case the `min_kept` of the lowest probability over all devices (all of them, if fewer count).
    If the probabilities differ, this is the rule of HRNet (1904.04514): it sorts them,
    p_0 <= p_1 <= ..., and keeps p < max(threshold, p_min_kept). Here equal ones at the limit are
    kept too, so there are never fewer than `min_kept`.

    Args:
        losses: `[...]` cross-entropies, unweighted: -log of those probabilities.
        counted: `[...]` bool, false where the label is ignored.
        threshold: probability.
        min_kept: pixels of the whole batch.

    Returns:
        `[...]` bool.
    """
    losses = lax.stop_gradient(losses)
    # Losses are compared, because they still differ where a float32 probability rounds to 1.
    hardness = jnp.where(counted, losses, -jnp.inf).ravel()
    hardness = gather_over_devices(hardness)
    # A rank past the counted pixels holds -inf: then all of them are kept.
    rank = max(hardness.size - min_kept, 0)
    limit = jnp.sort(hardness)[rank] if min_kept > 0 else jnp.inf
    return counted & ((losses > -jnp.log(threshold)) | (losses >= limit))
