"""How Broyden's method reads the steps that `step_history` keeps: each way is a pair of functions.

`inner_products` are of each step with g and with the last step, `combination` is the weighted sum
of the steps less g, and its product with the last step; see `step_history.Access`. All pairs round
alike, except those for GPUs.
"""

from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from mdeq_jax.kernels import broyden_history
from mdeq_jax.parallel import varying_like

Parts = tuple[jax.Array, ...]

# XLA's products with a matrix take eight rows at a time, and round a single row differently.
ROWS = 8
MAX_PARTS = 8  # each is one more branch to compile


def split(rows: int) -> list[int]:
    """At most `MAX_PARTS` parts: multiples of `ROWS`, and at least two rows that are left over."""
    size = ROWS * max(1, -(-rows // (ROWS * MAX_PARTS)))
    sizes = [size] * (rows // size)
    rest = rows - sum(sizes)
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def starts(parts: Parts) -> list[int]:
    """The number of the first step of each part."""
    return list(accumulate((part.shape[1] for part in parts[:-1]), initial=0))


def inner_products(parts: Parts, filled, gz, last):
    """With all rows of one part."""
    return [product("bnd,bd->bn", parts[0], other) for other in (gz, last)]


def inner_products_of_filled(parts: Parts, filled, gz, last):
    """With the parts that hold a step."""

    def products(part, start):
        zeros = varying_like(part, jnp.zeros(part.shape[:2], gz.dtype))
        return lax.cond(
            filled > start,
            lambda: inner_products((part,), filled, gz, last),
            lambda: [zeros, zeros],
        )

    of_parts = map(products, parts, starts(parts))
    return [jnp.concatenate(pieces, axis=1) for pieces in zip(*of_parts, strict=True)]


def inner_products_in_one_pass(parts: Parts, filled, gz, last):
    """Both products in one kernel, into which XLA fuses sums over the same array."""
    steps = parts[0].astype(gz.dtype)
    return [jnp.sum(steps * other[:, None, :], axis=2) for other in (gz, last)]


def combination(parts: Parts, filled, weights, gz, last):
    """Of all rows of one part."""
    w = product("bnd,bn->bd", parts[0], weights) - gz
    return w, product("bd,bd->b", last, w)


def combination_of_filled(parts: Parts, filled, weights, gz, last):
    """Of the filled rows, one at a time. XLA's product with a vector adds in the same order."""
    total = varying_like(gz, jnp.zeros_like(gz))
    for part, start in zip(parts, starts(parts), strict=True):

        def add(row, total, part=part, start=start):
            step = lax.dynamic_index_in_dim(part, row, axis=1, keepdims=False)
            weight = lax.dynamic_slice_in_dim(weights, start + row, 1, axis=1)
            return _add(total, weight, step)

        total = lax.fori_loop(0, jnp.clip(filled - start, 0, part.shape[1]), add, total)
    w = total - gz
    return w, product("bd,bd->b", last, w)


def inner_products_of_slots(parts: Parts, filled, gz, last):
    """With the filled rows, under `jax.vmap` over slots with different numbers of steps.

    A batched product would read all the rows of every slot, and of 16 slots that take sample after
    sample one is nearly always full.
    """
    return _products_of_slots(parts[0], filled, gz, last)


def combination_of_slots(parts: Parts, filled, weights, gz, last):
    """Of the filled rows, under `jax.vmap`."""
    w = _combination_of_slots(parts[0], filled, weights) - gz
    return w, product("bd,bd->b", last, w)


@custom_vmap
def _products_of_slots(steps, filled, gz, last):
    return inner_products((steps,), filled, gz, last)


@_products_of_slots.def_vmap
def _(slots, batched, steps, filled, gz, last):
    """The filled rows of one slot after the other, rounded up to a part."""
    del batched
    rows = steps.shape[2]
    ends = list(accumulate(split(rows), initial=0))

    def read(end, slot):
        part = _slice(steps, (slot, 0, 0, 0), (1, 1, end, steps.shape[3]))[0]
        others = (lax.dynamic_index_in_dim(x, slot, keepdims=False) for x in (gz, last))
        products = inner_products((part,), filled, *others)
        return [jnp.pad(x, ((0, 0), (0, rows - end))) for x in products]

    def one_slot(slot, products):
        where = jnp.sum(filled[slot] > jnp.asarray(ends[:-1]))
        own = lax.switch(where, [partial(read, end) for end in ends], slot)
        return [lax.dynamic_update_index_in_dim(x, one, slot, 0) for x, one in zip(products, own)]

    zeros = varying_like(steps, [jnp.zeros((slots, 1, rows), gz.dtype)] * 2)
    return lax.fori_loop(0, slots, one_slot, zeros), [True, True]


@custom_vmap
def _combination_of_slots(steps, filled, weights):
    return product("bnd,bn->bd", steps, weights)


@_combination_of_slots.def_vmap
def _(slots, batched, steps, filled, weights):
    """A few rows in one pass, for one slot after the other."""
    del batched
    rows, features = steps.shape[2:]
    few = min(ROWS, rows)
    whole, rest = divmod(rows, few)

    def add(slot, start, size, total):
        part = _slice(steps, (slot, 0, start, 0), (1, 1, size, features))
        some = _slice(weights, (slot, 0, start), (1, 1, size))
        for row in range(size):
            total = _add(total, some[0, :, row, None], part[0, :, row])
        return total

    def one_slot(slot, sums):
        total = varying_like(steps, jnp.zeros((1, features), weights.dtype))
        total = lax.fori_loop(
            0,
            jnp.minimum(-(-filled[slot] // few), whole),
            lambda block, total: add(slot, block * few, few, total),
            total,
        )
        if rest:
            total = lax.cond(
                filled[slot] > rows - rest,
                lambda total: add(slot, rows - rest, rest, total),
                lambda total: total,
                total,
            )
        return lax.dynamic_update_index_in_dim(sums, total, slot, 0)

    zeros = varying_like(steps, jnp.zeros((slots, 1, features), weights.dtype))
    return lax.fori_loop(0, slots, one_slot, zeros), True


def pallas_inner_products(parts: Parts, filled, gz, last):
    """With the filled rows, in one pass."""
    return broyden_history.inner_products(parts[0], filled, gz)


def pallas_combination(parts: Parts, filled, weights, gz, last):
    """Of the filled rows, with its product in the same pass."""
    return broyden_history.direction(parts[0], filled, weights, gz)


def _slice(array, start, size):
    """A slice whose start may be numbers of several types."""
    return lax.dynamic_slice(array, [jnp.asarray(i, jnp.int32) for i in start], size)


def _add(total, weight, step):
    """`total` and a weighted step, rounded as `product` rounds."""
    return total + weight.astype(step.dtype).astype(total.dtype) * step.astype(total.dtype)


def product(subscripts, history, other):
    """`jnp.einsum` of the history, in its type."""
    return jnp.einsum(
        subscripts,
        history,
        other.astype(history.dtype),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=other.dtype,
    )
