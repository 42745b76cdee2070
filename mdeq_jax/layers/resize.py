"""Nearest upsampling by a power of two, and bilinear resizing with aligned corners."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
    """`[B, H, W, C]` to `[B, factor H, factor W, C]`, each value repeated."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(
        x[:, :, None, :, None, :], (batch, height, factor, width, factor, channels)
    )
    return rearrange(x, "b h i w j c -> b (h i) (w j) c")


def _interpolation(size: int, new_size: int) -> np.ndarray:
    """`[new_size, size]` weights of 1-D linear interpolation with aligned end points."""
    matrix = np.zeros((new_size, size))
    position = np.arange(new_size) * ((size - 1) / (new_size - 1) if new_size > 1 else 0.0)
    low = np.minimum(position.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    rows = np.arange(new_size)
    np.add.at(matrix, (rows, low), 1 - (position - low))
    np.add.at(matrix, (rows, high), position - low)
    return matrix


def resize_bilinear(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear resizing as `torch.nn.functional.interpolate` does it with `align_corners=True`.

    `jax.image.resize` aligns pixel centres only. This is two small matrix products, and so is its
    gradient.

    Args:
        x: `[B, H, W, C]`.
        size: new height and width.

    Returns:
        `[B, *size, C]`.
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows = jnp.asarray(_interpolation(x.shape[1], size[0]), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[2], size[1]), x.dtype)
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision="highest")
    return jnp.einsum("jw,biwc->bijc", columns, x, precision="highest")
