"""The norms and residuals of samples, which neither overflow nor vanish."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware

REL_EPS = 1e-9  # keeps the relative residual finite where f(z) = 0


def safe_norms(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Euclidean norm of each sample of each `[B, D]`, whose squares cannot overflow, nor vanish.

    A lost residual would be a lie. But the plain norm is nearly always right: CPUs compute another
    only where it is not. GPUs always do, in the same pass over memory, as a branch would make them
    wait for the host at every step.
    """
    # By a power of two, so that scaling rounds nothing. The ranges of the three sums overlap.
    scale = 2.0 ** (3 * jnp.finfo(arrays[0].dtype).maxexp // 4)
    batch, features = arrays[0].shape

    def norm(total, reduced, enlarged):
        other = jnp.where(total > 1, jnp.sqrt(reduced) * scale, jnp.sqrt(enlarged) / scale)
        return jnp.where(_in_range(total, features), jnp.sqrt(total), other)

    if not hardware.on_cpu():
        squares = [jnp.square(x * factor) for x in arrays for factor in (1, 1 / scale, scale)]
        # Sums of parts first, as XLA would do it; then those of all of them in one kernel.
        parts = math.gcd(features, 128)
        sums = [jnp.sum(s.reshape(batch, parts, features // parts), axis=2) for s in squares]
        sums = jnp.sum(jnp.stack(sums), axis=2).reshape(len(arrays), 3, batch)
        return tuple(norm(*three) for three in sums)

    def total(x):
        return jnp.sum(jnp.square(x), axis=1)

    totals = [total(x) for x in arrays]
    right = jnp.stack([_in_range(t, features) for t in totals])
    return lax.cond(
        right.all(),
        lambda: tuple(map(jnp.sqrt, totals)),
        lambda: tuple(
            norm(t, total(x * (1 / scale)), total(x * scale)) for t, x in zip(totals, arrays)
        ),
    )


def _in_range(total: jax.Array, terms: int) -> jax.Array:
    """Whether a sum of squares is right: all that matters in it are normal numbers."""
    info = jnp.finfo(total.dtype)
    return (total > terms * float(info.tiny / info.eps)) & (total < float(info.max))


def residuals(z: jax.Array, fz: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Absolute and relative residual, infinite where they are no numbers, and where they are."""
    absolute, size = safe_norms(fz - z, fz)
    finite = jnp.isfinite(absolute) & jnp.isfinite(size)
    relative = jnp.where(finite, absolute / (size + REL_EPS), jnp.inf)
    return jnp.where(finite, absolute, jnp.inf), relative, finite
