"""Pallas kernels for Broyden's two reductions over its history, which read only the filled rows.

XLA reads every row, because their number is known only at run time: twice as much over a whole
solve. A program works on one sample and a stretch of its D numbers. Arithmetic is in float32 or
better.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mdeq_jax.kernels.launch import launch, triton

STRETCH = 4096  # a power of two, for Triton
NUM_WARPS = 8
MIN_PROGRAMS = 256  # about two for each multiprocessor of an H200


def num_programs(z: jax.Array) -> int:
    """Programs that each kernel launches for a state `[B, D]`."""
    batch, features = z.shape
    return batch * pl.cdiv(features, STRETCH)


def inner_products(
    steps: jax.Array, filled: jax.Array, gz: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Inner products of every step with `gz` and with the last step.

    Args:
        steps: `[B, rows, D]` history.
        filled: int32 scalar, number of rows that hold a step, from the first row on. Row 0 must be
            zero if there are none.
        gz: `[B, D]`.

    Returns:
        `[B, rows]` with `gz` and `[B, rows]` with the last of the filled rows, in the type of
        `gz`; zero in rows that are not filled.
    """
    batch, rows, features = steps.shape
    stretches = pl.cdiv(features, STRETCH)
    parts = launch(
        partial(_inner_products, features),
        (batch, stretches),
        [jax.ShapeDtypeStruct((batch, rows, stretches), gz.dtype)] * 2,
        *(steps, filled[None], gz),
        num_warps=NUM_WARPS,
    )
    is_filled = jnp.arange(rows)[None, :, None] < filled
    with_gz, with_last = (jnp.sum(jnp.where(is_filled, part, 0), 2) for part in parts)
    return with_gz, with_last


def _inner_products(features, steps_ref, filled_ref, gz_ref, with_gz_ref, with_last_ref):
    sample, stretch, filled = pl.program_id(0), pl.program_id(1), filled_ref[0]
    read = _reader(features, gz_ref.dtype)
    gz, last = read(gz_ref, sample), read(steps_ref, sample, jnp.maximum(filled - 1, 0))

    def row(i, carry):
        step = read(steps_ref, sample, i)
        for ref, other in ((with_gz_ref, gz), (with_last_ref, last)):
            ref[sample, i, stretch] = jnp.sum(step * other).astype(ref.dtype)
        return carry

    lax.fori_loop(jnp.int32(0), filled, row, 0)


def direction(
    steps: jax.Array, filled: jax.Array, weights: jax.Array, gz: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of the steps less `gz`, and its inner product with the last step.

    Args:
        steps: `[B, rows, D]` history.
        filled: int32 scalar, number of rows that hold a step, as for `inner_products`.
        weights: `[B, rows]`.
        gz: `[B, D]`.

    Returns:
        `[B, D]` w, the sum of the filled rows by their weights less `gz`, and `[B]` its inner
        product with the last of the filled rows, in the type of `gz`.
    """
    batch, _, features = steps.shape
    stretches = pl.cdiv(features, STRETCH)
    w, parts = launch(
        partial(_direction, features),
        (batch, stretches),
        [jax.ShapeDtypeStruct(shape, gz.dtype) for shape in (gz.shape, (batch, stretches))],
        *(steps, filled[None], weights, gz),
        num_warps=NUM_WARPS,
    )
    return w, jnp.sum(parts, 1)


def _direction(features, steps_ref, filled_ref, weights_ref, gz_ref, w_ref, last_w_ref):
    sample, stretch, filled = pl.program_id(0), pl.program_id(1), filled_ref[0]
    read = _reader(features, gz_ref.dtype)

    def row(i, w):
        return w + weights_ref[sample, i] * read(steps_ref, sample, i)

    w = lax.fori_loop(jnp.int32(0), filled, row, -read(gz_ref, sample))
    last = read(steps_ref, sample, jnp.maximum(filled - 1, 0))
    last_w_ref[sample, stretch] = jnp.sum(last * w).astype(last_w_ref.dtype)
    where, mask = _stretch(features)
    triton().store(w_ref.at[sample, where], w.astype(w_ref.dtype), mask=mask)


def _stretch(features: int):
    """The program's stretch of the D numbers, and a mask of those below D."""
    start = pl.program_id(1) * STRETCH
    return pl.ds(start, STRETCH), start + lax.iota(jnp.int32, STRETCH) < features


def _reader(features: int, dtype) -> Callable:
    """Makes `read(ref of [..., D], *leading indices)`: the program's stretch, zero beyond D."""
    where, mask = _stretch(features)
    dtype = jnp.promote_types(dtype, jnp.float32)

    def read(ref, *index):
        return triton().load(ref.at[*index, where], mask=mask, other=0).astype(dtype)

    return read
