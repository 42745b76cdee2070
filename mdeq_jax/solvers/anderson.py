"""Anderson acceleration (type II) with a ring of the last m iterates.

Each step takes the combination of the last iterates whose combined residual is smallest (Anderson
1965; Walker and Ni 2011, algorithm AA), where g_j = f(z_j) - z_j:

    minimise |sum_j a_j g_j|^2 + lam |a|^2  subject to  sum_j a_j = 1,
    z <- beta sum_j a_j f(z_j) + (1 - beta) sum_j a_j z_j.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.solvers.loop import iterate
from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.validate import check_count


class _Ring(NamedTuple):
    """The last m iterates, in arbitrary order.

    Attributes:
        f: `[B, m, D]` f at each.
        g: `[B, m, D]` the residual f(z) - z of each.
        gram: `[B, m, m]` inner products of the residuals.
        filled: `[B, m]` bool, the iterates that are combined.
    """

    f: jax.Array
    g: jax.Array
    gram: jax.Array
    filled: jax.Array


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
    record_at: tuple[int, ...] = (),
) -> Solution:
    """Solves f(z) = z by Anderson acceleration, every sample on its own.

    Two `[B, m, D]` arrays are kept and each is read once a step.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start; a good guess (the last video frame's state, say) saves steps.
        max_steps: most steps; `f` is evaluated once more than there are steps.
        tol: a sample is done once its residual is under this.
        stop_mode: "rel" or "abs", see `Solution`.
        m: how many iterates are combined.
        lam: regularisation of the Gram matrix.
        beta: mixing, in (0, 1]; below 1 the iterates themselves are mixed in.
        scale_lam: adds `max(lam * min(1, s), 10 * eps * s)` to the Gram matrix's diagonal, where
            s is the mean of that diagonal: strong enough where residuals are large, and still
            small beside them once they are small. False adds `lam` however small they are, as the
            original does, and never less than the same rounding.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the report, ascending.

    Raises:
        ValueError, TypeError: an argument is out of range, or `f` does not keep shape and type.
    """
    check_count("m, the number of iterates combined,", m)
    if not lam >= 0:
        raise ValueError(f"lam must not be negative; got {lam}.")
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be in (0, 1]; got {beta}.")
    dtype = z0.dtype
    slots = min(m, max_steps)
    solve_triangular = partial(lax.linalg.triangular_solve, left_side=True, lower=True)
    small = jnp.promote_types(dtype, jnp.float32)  # of all that is not `[B, m, D]`
    eps, tiny = jnp.finfo(small).eps, jnp.finfo(small).tiny

    def init(z):
        batch, features = z.shape
        empty = jnp.zeros((batch, slots, features), dtype)
        gram = jnp.zeros((batch, slots, slots), small)
        return _Ring(f=empty, g=empty, gram=gram, filled=jnp.zeros((batch, slots), bool))

    def coefficients(gram, filled):
        """`[B, m]`: the constrained least squares, from (G + lam I) y = 1, a = y / sum y."""
        eye = jnp.eye(slots, dtype=small)[None]
        pair = filled[:, :, None] & filled[:, None, :]
        gram = jnp.where(pair, gram, 0)
        s = jnp.einsum("bii->b", gram) / jnp.sum(filled, axis=1)
        # Never less than rounding, below which the matrix may be singular.
        added = jnp.maximum(lam * (jnp.minimum(1, s) if scale_lam else 1), 10 * eps * s)
        # Scaled by its own size, so that the factorisation sees numbers near one; slots that are
        # not combined get a unit diagonal and a zero right-hand side.
        size = jnp.maximum(s + added, tiny)[:, None, None]
        matrix = jnp.where(pair, (gram + eye * added[:, None, None]) / size, eye)
        factor = lax.linalg.cholesky(matrix, symmetrize_input=False)  # NaN if not definite
        half = solve_triangular(factor, filled[..., None].astype(small))
        y = solve_triangular(factor, half, transpose_a=True)[..., 0]
        alpha = y / jnp.sum(y, axis=1, keepdims=True)
        return alpha, jnp.isfinite(alpha).all(axis=1)

    def update(ring, step, z, fz, gz, active):
        slot = step % slots
        fs = ring.f.at[:, slot].set(fz)
        gs = ring.g.at[:, slot].set(gz)
        inner = jnp.einsum(
            "bmd,bd->bm", gs, gz, precision=lax.Precision.HIGHEST, preferred_element_type=small
        )
        gram = ring.gram.at[:, slot, :].set(inner).at[:, :, slot].set(inner)
        filled = ring.filled | (jnp.arange(slots)[None, :] == slot)
        alpha, usable = coefficients(gram, filled)
        # Without a usable combination a sample takes the plain step.
        plain = jnp.zeros_like(alpha).at[:, slot].set(1)
        alpha = jnp.where(usable[:, None], alpha, plain)
        mixed = fs if beta == 1 else fs - (1 - beta) * gs
        proposed = jnp.einsum("bm,bmd->bd", alpha, mixed, precision=lax.Precision.HIGHEST)
        z = jnp.where(active[:, None], proposed.astype(dtype), z)
        return _Ring(fs, gs, gram, filled), z, jnp.zeros_like(active)

    return iterate(
        f,
        z0,
        init,
        update,
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
    )
