"""Anderson acceleration (type II) with a ring of the last m iterates.

Each step takes the combination of the last iterates whose combined residual is smallest (Anderson
1965; Walker and Ni 2011, algorithm AA):

    minimise |sum_j a_j g_j|^2 + lam |a|^2  subject to  sum_j a_j = 1,
    z <- beta sum_j a_j f(z_j) + (1 - beta) sum_j a_j z_j.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.solvers.base import Solution, iterate


class _Ring(NamedTuple):
    """The last m iterates, in arbitrary order.

    Attributes:
        z: `[B, m, D]`.
        f: `[B, m, D]` f at each.
        gram: `[B, m, m]` inner products of the residuals g_j = f_j - z_j.
    """

    z: jax.Array
    f: jax.Array
    gram: jax.Array


def anderson(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    *,
    max_steps: int = 30,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    m: int = 6,
    lam: float = 1e-4,
    beta: float = 1.0,
    scale_lam: bool = True,
    step_budget: int | jax.Array | None = None,
) -> Solution:
    """Solves f(z) = z by Anderson acceleration, every sample on its own.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start.
        max_steps: most steps; `f` is evaluated once more than there are steps.
        tol: a sample is done once its residual is under this.
        stop_mode: "rel" or "abs", see `Solution`.
        m: how many iterates are combined.
        lam: regularisation of the Gram matrix.
        beta: mixing, in (0, 1]; below 1 the iterates themselves are mixed in.
        scale_lam: adds `max(lam * min(1, s), 10 * eps * s)` to the Gram matrix's diagonal, where
            s is the mean of that diagonal: strong enough where residuals are large, and still
            small beside them once they are small. False adds `lam` alone, as the original does.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).

    Raises:
        ValueError, TypeError: an argument is out of range, or `f` does not keep shape and type.
    """
    if m < 1:
        raise ValueError(f"m, the number of iterates combined, must be at least 1; got {m}.")
    if lam < 0:
        raise ValueError(f"lam must not be negative; got {lam}.")
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be in (0, 1]; got {beta}.")
    dtype = z0.dtype
    slots = min(m, max_steps)
    tiny = jnp.finfo(dtype).tiny

    def init(z):
        empty = jnp.zeros((z.shape[0], slots, z.shape[1]), dtype)
        return _Ring(z=empty, f=empty, gram=jnp.zeros((z.shape[0], slots, slots), dtype))

    def coefficients(gram, filled):
        """`[B, m]`: the constrained least squares, from (G + lam I) y = 1, a = y / sum y."""
        s = jnp.einsum("bii->b", gram) / jnp.sum(filled)
        if scale_lam:
            added = jnp.maximum(lam * jnp.minimum(1, s), 10 * jnp.finfo(dtype).eps * s)
        else:
            added = jnp.full_like(s, lam)
        # Scaled by its own size, so that the factorisation sees numbers near one; slots that are
        # still empty get a unit diagonal and a zero right-hand side.
        size = jnp.maximum(s + added, tiny)[:, None, None]
        pair = (filled[:, None] & filled[None, :])[None]
        eye = jnp.eye(slots, dtype=dtype)[None]
        matrix = jnp.where(pair, (gram + eye * added[:, None, None]) / size, eye)
        ones = jnp.broadcast_to(filled.astype(dtype)[None, :], gram.shape[:2])
        y = jnp.linalg.solve(matrix, ones[..., None])[..., 0]
        total = jnp.sum(y, axis=1, keepdims=True)
        alpha = y / jnp.where(total == 0, 1, total)
        usable = jnp.isfinite(alpha).all(axis=1) & (total[:, 0] != 0)
        return alpha, usable

    def update(ring, step, z, fz, gz, active):
        slot = step % slots
        zs = ring.z.at[:, slot].set(z)
        fs = ring.f.at[:, slot].set(fz)
        inner = jnp.einsum(
            "bmd,bd->bm", fs - zs, gz, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
        )
        gram = ring.gram.at[:, slot, :].set(inner).at[:, :, slot].set(inner)
        alpha, usable = coefficients(gram, jnp.arange(slots) <= step)
        # Without a usable combination a sample takes the plain step.
        plain = jnp.zeros_like(alpha).at[:, slot].set(1)
        alpha = jnp.where(usable[:, None], alpha, plain)
        mixed = fs if beta == 1 else beta * fs + (1 - beta) * zs
        proposed = jnp.einsum("bm,bmd->bd", alpha, mixed, precision=lax.Precision.HIGHEST)
        return _Ring(zs, fs, gram), proposed, jnp.zeros_like(active)

    return iterate(
        f,
        z0,
        init,
        update,
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
    )
