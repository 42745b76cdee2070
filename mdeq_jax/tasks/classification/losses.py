"""Losses over the examples of a batch, as sums and the weights that they are divided by."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each example, in nats.

    Args:
        logits: `[B, num_classes]`.
        labels: `[B]` int, in [0, num_classes).
        smoothing: share of the target that is spread evenly over all classes, as
            `label_smoothing` of PyTorch's loss (Szegedy et al. 2015, 1512.00567, section 7).

    Returns:
        `[B]`.
    """
    log_probs = jax.nn.log_softmax(logits)
    of_label = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    return -(1 - smoothing) * of_label - smoothing * jnp.mean(log_probs, axis=1)


def correct_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """1 where the label is among the k largest logits, else 0: `[B]` float32."""
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)
    # Ties count against the label: a network with equal logits for all classes gets none right.
    # So does a NaN, which is neither above nor below.
    better = jnp.sum(~(logits < of_label), axis=1) - 1
    return (better < k).astype(jnp.float32)
