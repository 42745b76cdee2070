"""The only file that uses `pmap`: mapping a step, replicating, sharding."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdeq_jax.data import shard_batch
from mdeq_jax.parallel import BATCH_AXIS, max_over_devices


def pmap(step: Callable, *, static_argnums=(), donate_argnums=()) -> Callable:
    """`jax.pmap` over all devices of all hosts, with the axis of `mdeq_jax.parallel`."""
    return jax.pmap(
        step,
        axis_name=BATCH_AXIS,
        static_broadcasted_argnums=static_argnums,
        donate_argnums=donate_argnums,
    )


def replicate(tree):
    """A copy for each local device, along a new leading axis."""
    # Mapped like the steps: otherwise the first step's placement would differ from the later ones'
    # and the step would be compiled twice.
    return _copy()(jax.tree.map(for_each_device, jax.device_get(tree)))


@functools.cache  # each new function would be compiled anew
def _copy() -> Callable:
    return pmap(lambda tree: tree)


def for_each_device(value) -> np.ndarray:
    """The same value for each local device: `[...]` to `[devices, ...]`, on the host."""
    return np.broadcast_to(value, (jax.local_device_count(), *np.shape(value)))


def replicated_shapes(tree):
    """Shapes and types of `replicate`'s arrays, from arrays or shapes `[...]`."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: _shape((count, *x.shape), x.dtype), tree)


def split_shapes(tree):
    """Shapes and types of `to_devices`' and `split`'s arrays, from arrays or shapes `[B, ...]`."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: _shape((count, x.shape[0] // count, *x.shape[1:]), x.dtype), tree)


def _shape(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def unreplicate(tree):
    """The first local device's copy, on the host."""
    return jax.tree.map(first, tree)


def first(x) -> np.ndarray:
    """The first local device's copy of one array, on the host."""
    return np.asarray(x.addressable_data(0))[0] if isinstance(x, jax.Array) else np.asarray(x)[0]


def fetch(tree):
    """`[devices, ...]` of the local devices, on the host."""

    def local(x):
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(local, tree)


def to_devices(batch: dict) -> dict:
    """`[B, ...]` of this host to `[devices, B / devices, ...]`, each part on its device."""
    mesh = Mesh(np.array(jax.local_devices()), (BATCH_AXIS,))
    return jax.device_put(
        shard_batch(batch, jax.local_device_count()), NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
    )


def split(tree):
    """`[B, ...]` of this host to `[devices, B / devices, ...]`, placed as steps return arrays."""
    if not jax.tree.leaves(tree):
        return tree
    count = jax.local_device_count()

    def parts(x):  # without -1, which empty arrays do not determine
        return np.reshape(x, (count, len(x) // count, *np.shape(x)[1:]))

    return _copy()(jax.tree.map(parts, tree))  # see `replicate`


def join(tree):
    """`[devices, B / devices, ...]` to `[B, ...]` of this host, on the host."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), fetch(tree))


class Agreement:
    """Whether any host has raised its flag; all hosts get the same answer.

    With several hosts each call answers the call before, so no host waits for the devices.
    """

    def __init__(self):
        self._any = pmap(max_over_devices)
        self._before = None

    def __call__(self, flag: bool) -> bool:
        """Asks; every host must call it."""
        if jax.process_count() == 1:
            return flag
        before, self._before = self._before, self._any(for_each_device(jnp.int32(flag)))
        return before is not None and bool(first(before))


def check_batch_size(batch_size: int, where: str, parts: int = 1) -> None:
    """Refuses a global batch that the devices of all hosts do not divide.

    Args:
        batch_size: over all devices of all hosts.
        where: name of the field.
        parts: how many parts each device makes of its share (gradient accumulation).

    Raises:
        ValueError: names the nearest sizes that would do.
    """
    devices = jax.device_count()
    unit = devices * parts
    if batch_size < 1 or batch_size % unit:
        below = max(batch_size // unit, 1) * unit
        each = f" times the {parts} parts of train.accumulate_steps" if parts > 1 else ""
        raise ValueError(
            f"{where}={batch_size} must be a multiple of the {devices} devices "
            f"({jax.process_count()} hosts with {jax.local_device_count()} here), over which it is "
            f"split evenly{each}: use {below} or {below + unit}."
        )
