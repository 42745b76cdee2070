"""The axis over which a batch is split between devices, and the reductions over it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any

BATCH_AXIS = "batch"  # name of the pmap axis


def mean_over_devices(tree: PyTree) -> PyTree:
    """The mean of every array over all devices."""
    return tree if num_devices() == 1 else lax.pmean(tree, BATCH_AXIS)


def sum_over_devices(tree: PyTree) -> PyTree:
    """The sum of every array over all devices."""
    return lax.psum(tree, BATCH_AXIS)


def max_over_devices(tree: PyTree) -> PyTree:
    """The maximum of every array over all devices."""
    return lax.pmax(tree, BATCH_AXIS)


def global_mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """This device's share of Σ values / Σ counts over all devices; 0 where Σ counts is 0.

    Args:
        values: `[...]`.
        counts: `[...]`, constants for the derivative.

    Returns:
        Scalar, whose mean over the devices is the quotient.
    """
    total = lax.stop_gradient(sum_over_devices(jnp.sum(counts)))
    return jnp.sum(values) * num_devices() / jnp.where(total > 0, total, 1.0)


def gather_over_devices(x: jax.Array) -> jax.Array:
    """The arrays of all devices, joined along their first axis."""
    return lax.all_gather(x, BATCH_AXIS, tiled=True)


def varying_like(reference: PyTree, tree: PyTree) -> PyTree:
    """`tree`, whose arrays vary over the axes of `jax.shard_map` that those of `reference` do.

    With `check_vma=True`, both sides of a loop's carry, and of a branch, must vary over the same
    axes. Constants vary over none.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(reference)))

    def vary(x):
        missing = axes - _varying_axes(x)
        return lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)


def _varying_axes(x) -> frozenset[str]:
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    return getattr(kind.manual_axis_type, "varying", frozenset())  # a shape may have None


def num_devices() -> int:
    """Number of devices along the batch axis."""
    return lax.axis_size(BATCH_AXIS)


def device_index() -> jax.Array:
    """Index of this device along the batch axis."""
    return lax.axis_index(BATCH_AXIS)
