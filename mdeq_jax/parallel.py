"""The axis over which a batch is split between devices, and the reductions over it."""

from typing import Any

import jax
from jax import lax

PyTree = Any

BATCH_AXIS = "batch"  # name of the pmap axis


def mean_over_devices(tree: PyTree) -> PyTree:
    """The mean of every array over all devices."""
    return lax.pmean(tree, BATCH_AXIS)


def sum_over_devices(tree: PyTree) -> PyTree:
    """The sum of every array over all devices."""
    return lax.psum(tree, BATCH_AXIS)


def device_index() -> jax.Array:
    """Index of this device along the batch axis."""
    return lax.axis_index(BATCH_AXIS)
