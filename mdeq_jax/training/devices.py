"""The only place that knows about `pmap`: replicating, sharding, mapping."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdeq_jax.data import shard_batch
from mdeq_jax.models.build import BATCH_AXIS


def pmap(step: Callable, *, static_argnums=(), donate_argnums=()) -> Callable:
    """`jax.pmap` over all devices of all hosts, with the axis "batch"."""
    return jax.pmap(
        step,
        axis_name=BATCH_AXIS,
        static_broadcasted_argnums=static_argnums,
        donate_argnums=donate_argnums,
    )


def replicate(tree):
    """A copy for each local device, along a new leading axis."""
    count = jax.local_device_count()
    # With the axis of the steps, or the first step's placement would differ from the later ones'
    # and it would be compiled twice.
    return pmap(lambda x: x)(
        jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), jax.device_get(tree))
    )


def unreplicate(tree):
    """The first device's copy, on the host."""
    return jax.device_get(jax.tree.map(lambda x: x[0], tree))


def place(batch: dict) -> dict:
    """`[B, ...]` of this host to `[devices, B / devices, ...]`, each part on its device."""
    mesh = Mesh(np.array(jax.local_devices()), (BATCH_AXIS,))
    return jax.device_put(
        shard_batch(batch, jax.local_device_count()), NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
    )


def check_batch_size(batch_size: int, where: str) -> None:
    """Refuses a global batch that the devices of all hosts do not divide.

    Raises:
        ValueError: as said; names the nearest sizes that would do.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        below = max(batch_size // devices, 1) * devices
        raise ValueError(
            f"{where}={batch_size} must be a multiple of the {devices} devices "
            f"({jax.process_count()} hosts with {jax.local_device_count()} here), over which it is "
            f"split evenly: use {below} or {below + devices}."
        )
