"""How Broyden's method stores its steps, and how it reads them.

A history is a tuple of arrays `[B, rows of this part, D]`, the parts. Steps fill them in order. On
a GPU and wherever caches hold the history there is one part, and XLA reads all of its rows. A large
history on a CPU has several, of which those that hold no step yet are not read. A solve that takes
all of its steps then reads little more than half. Both ways round alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.kernels import broyden_history
from mdeq_jax.kernels.launch import enabled
from mdeq_jax.solvers import history_products as products
from mdeq_jax.solvers.history_products import Parts

LARGE = 16 * 2**20  # bytes


class Access(NamedTuple):
    """One way of keeping and reading the steps.

    Attributes:
        sizes: number of rows -> the rows of each part.
        inner_products: (parts, number of steps, g `[B, D]`, last step `[B, D]`) -> `[B, rows]`
            products of each step with g and with the last step.
        combination: (parts, number of steps, weights `[B, rows]`, g) -> `[B, D]`, the weighted sum
            of the steps less g, and `[B]` its product with the last step.
    """

    sizes: Callable[[int], list[int]]
    inner_products: Callable
    combination: Callable


def choose(pallas: bool | None, z: jax.Array, rows: int, dtype, *, alone: bool = True) -> Access:
    """The fastest access for this hardware.

    Args:
        pallas: whether to use Pallas kernels on a GPU; None decides by size.
        z: `[B, D]`, a state.
        rows: most steps.
        dtype: of the steps.
        alone: False where the number of steps differs between samples, under `jax.vmap`.
    """
    if hardware.target().platform == "gpu":
        programs = broyden_history.num_programs(z)
        with_pallas = enabled(pallas, programs, broyden_history.MIN_PROGRAMS)
        return PALLAS if with_pallas else ONE_PASS
    cpu, width = hardware.target().platform == "cpu", jnp.dtype(dtype).itemsize
    # XLA for CPUs converts a narrower type first, which takes more memory by parts.
    # In an exported program for any batch size, the size is not known.
    fixed = isinstance(z.size, int)
    large = fixed and width >= 4 and z.size * rows * width >= LARGE
    if not (cpu and large):
        return WHOLE
    return FILLED if alone else OF_SLOTS


def empty(z: jax.Array, sizes: list[int], dtype) -> Parts:
    """Parts of these sizes, all zero."""
    batch, features = z.shape
    return tuple(jnp.zeros((batch, size, features), dtype) for size in sizes)


def get(parts: Parts, index: jax.Array) -> jax.Array:
    """`[B, D]` step number `index`."""

    def read(part, start):
        return lambda: lax.dynamic_index_in_dim(part, index - start, axis=1, keepdims=False)

    where = jnp.sum(index >= jnp.asarray(products.starts(parts))) - 1
    return lax.switch(where, list(map(read, parts, products.starts(parts))))


def put(parts: Parts, index: jax.Array, step: jax.Array) -> Parts:
    """The parts with `step` `[B, D]` at `index`; unchanged if they have no such row."""
    if len(parts) == 1:
        return (parts[0].at[:, index].set(step.astype(parts[0].dtype), mode="drop"),)

    def write(part, start):
        row = index - start
        return lax.cond(
            (row >= 0) & (row < part.shape[1]),
            lambda: lax.dynamic_update_index_in_dim(part, step.astype(part.dtype), row, axis=1),
            lambda: part,
        )

    return tuple(map(write, parts, products.starts(parts)))


def _whole(rows: int) -> list[int]:
    return [rows]


WHOLE = Access(_whole, products.inner_products, products.combination)
FILLED = Access(products.split, products.inner_products_of_filled, products.combination_of_filled)
OF_SLOTS = Access(_whole, products.inner_products_of_slots, products.combination_of_slots)
ONE_PASS = Access(_whole, products.inner_products_in_one_pass, products.combination)
PALLAS = Access(_whole, products.pallas_inner_products, products.pallas_combination)
