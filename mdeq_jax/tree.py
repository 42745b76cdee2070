"""States as flat arrays: a pytree with leaves `[B, ...]` as one `[B, D]` array, and back."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def ravel_batch(state: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Flattens every axis except the leading batch axis and joins the leaves.

    Args:
        state: pytree whose leaves share the batch axis `[B, ...]`; for an MDEQ the tuple of
            `[B, H_i, W_i, C_i]` feature maps, highest resolution first.

    Returns:
        The array `[B, D]`, in the leaves' common type, and the function that turns such an array
        into a pytree like `state`. It keeps the array's type and batch size.

    Raises:
        ValueError: there is no leaf, a leaf is a scalar, or the batch sizes differ.
    """
    leaves, treedef = jax.tree.flatten(state)
    if not leaves:
        raise ValueError("The state has no arrays; it needs at least one with a batch axis.")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"Every array of the state needs the same leading batch axis; got shapes {shapes}."
        )
    batch = shapes[0][0]
    sizes = [math.prod(shape[1:]) for shape in shapes]
    dtype = jnp.result_type(*leaves)
    flat = [jnp.reshape(leaf, (batch, size)).astype(dtype) for leaf, size in zip(leaves, sizes)]

    def unravel(array: jax.Array) -> PyTree:
        parts, start = [], 0
        for shape, size in zip(shapes, sizes):
            if isinstance(array, np.ndarray):  # on the host
                part = array[:, start : start + size]
            else:
                part = jax.lax.slice_in_dim(array, start, start + size, axis=1)
            parts.append(part.reshape(array.shape[0], *shape[1:]))
            start += size
        return jax.tree.unflatten(treedef, parts)

    return jnp.concatenate(flat, axis=1) if len(flat) > 1 else flat[0], unravel
