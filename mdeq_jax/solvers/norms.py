"""Norms and residuals of samples, correct also where squares over- or underflow."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from mdeq_jax import hardware


def residuals(z: jax.Array, fz: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The residuals of each sample's state, in float32 or better.

    Args:
        z: `[B, D]` state.
        fz: `[B, D]` f(z).

    Returns:
        `[B]` |f(z) - z|, `[B]` |f(z) - z| / |f(z)|, both infinite if not finite, and `[B]` bool,
        whether they are finite.
    """
    absolute, size = safe_norms(in_float32(fz) - in_float32(z), fz)
    finite = jnp.isfinite(absolute) & jnp.isfinite(size)
    rel_residual = jnp.where(finite, relative(absolute, size), jnp.inf)
    return jnp.where(finite, absolute, jnp.inf), rel_residual, finite


def relative(absolute: jax.Array, size: jax.Array) -> jax.Array:
    """A norm relative to another, finite even if that is zero.

    It is `absolute / size`, without the originals' constant: `absolute / (size + 1e-9)` is small
    for any small numbers, solved or not.
    """
    info = jnp.finfo(absolute.dtype)
    nonzero = size >= float(info.tiny)
    ratio = jnp.minimum(absolute / jnp.where(nonzero, size, 1), float(info.max))
    return jnp.where(nonzero, ratio, jnp.where(absolute == 0, 0, float(info.max)))


def in_float32(x: jax.Array) -> jax.Array:
    """`x` in float32 if its type is narrower, else as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def safe_norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each sample, `[B, D]` to `[B]`; see `safe_norms`."""
    return safe_norms(x)[0]


def safe_norms(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Euclidean norm of each sample of each `[B, D]` array, as `[B]` each.

    It is rescaled only if the sum of squares over- or underflows. CPUs branch on it. GPUs
    compute every scale in one pass over memory, because a branch would synchronise with the host.
    Norms of arrays narrower than float32 are float32.
    """
    arrays = tuple(map(in_float32, arrays))
    if arrays[0].shape[1] == 1:  # XLA simplifies the root of one square to NaN at zero
        return tuple(jnp.abs(x[:, 0]) for x in arrays)
    norms = _norms_in_one_pass if hardware.target().platform == "gpu" else _norms_with_branch
    return norms(*arrays)


def _norms_with_branch(*arrays):
    totals = [_sum_of_squares(x) for x in arrays]
    in_range = jnp.stack([_in_range(t, arrays[0].shape[1]) for t in totals])
    scale = _scale(arrays[0].dtype)

    def rescaled():
        return tuple(
            _norm(x, total, _sum_of_squares(x * (1 / scale)), _sum_of_squares(x * scale))
            for x, total in zip(arrays, totals)
        )

    return lax.cond(in_range.all(), lambda: tuple(map(jnp.sqrt, totals)), rescaled)


def _norms_in_one_pass(*arrays):
    scale = _scale(arrays[0].dtype)
    squares = [jnp.square(x * factor) for x in arrays for factor in (1, 1 / scale, scale)]
    # Sums of parts first, as XLA would split them; then all of these in one kernel.
    parts = math.gcd(arrays[0].shape[1], 128)
    sums = [jnp.sum(rearrange(s, "b (p n) -> b p n", p=parts), axis=2) for s in squares]
    sums = rearrange(jnp.sum(jnp.stack(sums), axis=2), "(a three) b -> a three b", three=3)
    return tuple(_norm(arrays[0], *three) for three in sums)


def _scale(dtype) -> float:
    """A power of two, so that scaling rounds nothing; the ranges of the three sums overlap."""
    return 2.0 ** (3 * jnp.finfo(dtype).maxexp // 4)


def _sum_of_squares(x):
    return jnp.sum(jnp.square(x), axis=1)


def _norm(x, total, reduced, enlarged):
    """The norm of x from the sums of squares of x, x / scale and scale x."""
    scale = _scale(x.dtype)
    other = jnp.where(total > 1, jnp.sqrt(reduced) * scale, jnp.sqrt(enlarged) / scale)
    return jnp.where(_in_range(total, x.shape[1]), jnp.sqrt(total), other)


def _in_range(total: jax.Array, terms: int) -> jax.Array:
    """Whether a sum of squares is correct: every term that matters is a normal number."""
    info = jnp.finfo(total.dtype)
    return (total > terms * float(info.tiny / info.eps)) & (total < float(info.max))
