"""How Broyden's method stores its steps, and how it reads them.

A history is a tuple of arrays `[B, rows of this part, D]`, the parts. Steps fill them in order. On
a GPU and wherever caches hold the history there is one part, and XLA reads all of its rows. A large
history on a CPU has several, of which those that hold no step yet are not read. A solve that takes
all of its steps then reads little more than half. Both ways round alike.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.kernels import broyden_history
from mdeq_jax.kernels.launch import enabled
from mdeq_jax.parallel import varying_like

Parts = tuple[jax.Array, ...]

# XLA's products with a matrix take eight rows at a time, and round a single row differently.
ROWS = 8
MAX_PARTS = 8  # each is one more branch to compile
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
        return PALLAS if enabled(pallas, broyden_history.num_programs(z)) else ONE_PASS
    cpu, width = hardware.target().platform == "cpu", jnp.dtype(dtype).itemsize
    # XLA for CPUs converts a narrower type first, which takes more memory by parts.
    # In an exported program for any batch size, the size is not known.
    fixed = isinstance(z.size, int)
    large = fixed and width >= 4 and z.size * rows * width >= LARGE
    return FILLED if cpu and alone and large else WHOLE


def empty(z: jax.Array, sizes: list[int], dtype) -> Parts:
    """Parts of these sizes, all zero."""
    batch, features = z.shape
    return tuple(jnp.zeros((batch, size, features), dtype) for size in sizes)


def get(parts: Parts, index: jax.Array) -> jax.Array:
    """`[B, D]` step number `index`."""

    def read(part, start):
        return lambda: lax.dynamic_index_in_dim(part, index - start, axis=1, keepdims=False)

    where = jnp.sum(index >= jnp.asarray(_starts(parts))) - 1
    return lax.switch(where, list(map(read, parts, _starts(parts))))


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

    return tuple(map(write, parts, _starts(parts)))


def _starts(parts: Parts) -> list[int]:
    """The number of the first step of each part."""
    return list(accumulate((part.shape[1] for part in parts[:-1]), initial=0))


def _whole(rows: int) -> list[int]:
    return [rows]


def _split(rows: int) -> list[int]:
    """At most `MAX_PARTS` parts: multiples of `ROWS`, and at least two rows that are left over."""
    size = ROWS * max(1, -(-rows // (ROWS * MAX_PARTS)))
    sizes = [size] * (rows // size)
    rest = rows - sum(sizes)
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def _inner_products(parts: Parts, filled, gz, last):
    return [_product("bnd,bd->bn", parts[0], other) for other in (gz, last)]


def _inner_products_of_filled(parts: Parts, filled, gz, last):
    def products(part, start):
        zeros = varying_like(part, jnp.zeros(part.shape[:2], gz.dtype))
        return lax.cond(
            filled > start,
            lambda: _inner_products((part,), filled, gz, last),
            lambda: [zeros, zeros],
        )

    of_parts = map(products, parts, _starts(parts))
    return [jnp.concatenate(pieces, axis=1) for pieces in zip(*of_parts, strict=True)]


def _inner_products_in_one_pass(parts: Parts, filled, gz, last):
    """Both products in one kernel, into which XLA fuses sums over the same array."""
    steps = parts[0].astype(gz.dtype)
    return [jnp.sum(steps * other[:, None, :], axis=2) for other in (gz, last)]


def _combination(parts: Parts, filled, weights, gz, last):
    w = _product("bnd,bn->bd", parts[0], weights) - gz
    return w, _product("bd,bd->b", last, w)


def _combination_of_filled(parts: Parts, filled, weights, gz, last):
    """A row at a time. XLA's product with a vector adds the rows in the same order."""
    total = varying_like(gz, jnp.zeros_like(gz))
    for part, start in zip(parts, _starts(parts), strict=True):

        def add(row, total, part=part, start=start):
            step = lax.dynamic_index_in_dim(part, row, axis=1, keepdims=False)
            weight = lax.dynamic_slice_in_dim(weights, start + row, 1, axis=1)
            return total + weight.astype(part.dtype).astype(gz.dtype) * step.astype(gz.dtype)

        total = lax.fori_loop(0, jnp.clip(filled - start, 0, part.shape[1]), add, total)
    w = total - gz
    return w, _product("bd,bd->b", last, w)


def _product(subscripts, history, other):
    return jnp.einsum(
        subscripts,
        history,
        other.astype(history.dtype),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=other.dtype,
    )


def _pallas_inner_products(parts: Parts, filled, gz, last):
    return broyden_history.inner_products(parts[0], filled, gz)


def _pallas_combination(parts: Parts, filled, weights, gz, last):
    return broyden_history.direction(parts[0], filled, weights, gz)


WHOLE = Access(_whole, _inner_products, _combination)
FILLED = Access(_split, _inner_products_of_filled, _combination_of_filled)
ONE_PASS = Access(_whole, _inner_products_in_one_pass, _combination)
PALLAS = Access(_whole, _pallas_inner_products, _pallas_combination)
