"""Anderson acceleration (type II) with a ring of the last m iterates.

Each step takes the combination of the last iterates whose combined residual is smallest (Anderson
1965; Walker and Ni 2011, algorithm AA). With g_j = f(z_j) - z_j:

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
from mdeq_jax.solvers.norms import in_float32
from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.states import Algorithm, Step
from mdeq_jax.solvers.validate import check_count


class _Ring(NamedTuple):
    """The last m iterates, in arbitrary order.

    Attributes:
        f: `[B, m, D]` f at each.
        g: `[B, m, D]` residual f(z) - z of each, in float32 or better.
        gram: `[B, m, m]` inner products of the residuals, in float32 or better.
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
    tol: float | jax.Array = 1e-3,
    stop_mode: str = "rel",
    m: int = 6,
    lam: float = 1e-4,
    beta: float = 1.0,
    scale_lam: bool = True,
    step_budget: int | jax.Array | None = None,
    record_at: tuple[int, ...] = (),
    trace: Callable | None = None,
    fz0: jax.Array | None = None,
    run: Callable[..., Solution] = iterate,
) -> Solution:
    """Solves f(z) = z by Anderson acceleration, every sample separately.

    It keeps two `[B, m, D]` arrays and reads each of them once a step.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start; a good guess, such as the state of the previous video frame, saves
            steps.
        max_steps: most steps; f is evaluated once more than there are steps.
        tol: a sample is finished once its residual is under this. May be traced, and `[B]`.
        stop_mode: "rel" or "abs", see `Solution`.
        m: number of iterates that are combined.
        lam: regularisation of the Gram matrix.
        beta: mixing, in (0, 1]; below 1 the iterates themselves are mixed in.
        scale_lam: adds `max(lam * min(1, s), 10 * eps * s)` to the Gram matrix's diagonal, where
            s is the mean of that diagonal. This is strong enough while residuals are large, and
            small compared with them once they are small. False adds `max(lam, 10 * eps * s)`, as
            the original does.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the solution, ascending.
        trace: function of (step, z `[B, D]`, residual `[B]`) that the host calls after the start
            (step 0) and each step, through `jax.debug.callback`. The residual is that of
            `stop_mode`; samples that are finished rest at their best iterate.
        fz0: `[B, D]` f(z0), if it is known; saves that evaluation.
        run: runs the algorithm; see `stream.settings_of`.

    Returns:
        A `Solution`.

    Raises:
        ValueError, TypeError: an argument is out of range, or f changes the shape or type of z.
    """
    check_count("max_steps", max_steps)
    check_count("m, the number of iterates combined,", m)
    if not lam >= 0:
        raise ValueError(f"lam must not be negative; got {lam}.")
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be in (0, 1]; got {beta}.")
    return run(
        f,
        z0,
        Algorithm(
            init=partial(_empty_ring, min(m, max_steps)),
            update=partial(_update, lam, beta, scale_lam),
        ),
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
        trace=trace,
        fz0=fz0,
    )


def _empty_ring(slots: int, z: jax.Array) -> _Ring:
    batch, features = z.shape
    fs = jnp.zeros((batch, slots, features), z.dtype)
    gs = in_float32(fs)
    gram = jnp.zeros((batch, slots, slots), gs.dtype)
    return _Ring(f=fs, g=gs, gram=gram, filled=jnp.zeros((batch, slots), bool))


def _update(lam, beta, scale_lam, ring: _Ring, index: jax.Array, step: Step):
    slots = ring.filled.shape[1]
    slot = index % slots
    fs = ring.f.at[:, slot].set(step.fz)
    gs = ring.g.at[:, slot].set(step.gz)
    inner = jnp.einsum(
        "bmd,bd->bm",
        gs,
        step.gz,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=ring.gram.dtype,
    )
    gram = ring.gram.at[:, slot, :].set(inner).at[:, :, slot].set(inner)
    filled = ring.filled | (jnp.arange(slots)[None, :] == slot)
    alpha, usable = _coefficients(gram, filled, lam, scale_lam)
    # Without a usable combination a sample takes the step of fixed-point iteration.
    undamped = jnp.zeros_like(alpha).at[:, slot].set(1)
    alpha = jnp.where(usable[:, None], alpha, undamped)
    mixed = fs if beta == 1 else fs - (1 - beta) * gs
    proposed = jnp.einsum("bm,bmd->bd", alpha, mixed, precision=lax.Precision.HIGHEST)
    z = jnp.where(step.active[:, None], proposed.astype(step.z.dtype), step.z)
    return _Ring(fs, gs, gram, filled), z, jnp.zeros_like(step.active)


def _coefficients(gram, filled, lam, scale_lam):
    """`[B, m]` the a of the constrained least squares, and `[B]` bool, whether they are finite.

    With the Gram matrix G they are a = y / sum y, where (G + lam I) y = 1.
    """
    dtype = gram.dtype
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
    eye = jnp.eye(gram.shape[1], dtype=dtype)[None]
    pair = filled[:, :, None] & filled[:, None, :]
    gram = jnp.where(pair, gram, 0)
    s = jnp.einsum("bii->b", gram) / jnp.sum(filled, axis=1)
    # Never less than rounding, below which the matrix may be singular.
    added = jnp.maximum(lam * (jnp.minimum(1, s) if scale_lam else 1), 10 * eps * s)
    # Divided by its size, so that the factorisation works on numbers near one. Slots that are not
    # combined get a unit diagonal and a zero right-hand side.
    size = jnp.maximum(s + added, tiny)[:, None, None]
    matrix = jnp.where(pair, (gram + eye * added[:, None, None]) / size, eye)
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)  # NaN if not definite
    solve = partial(lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    half = solve(filled[..., None].astype(dtype))
    y = solve(half, transpose_a=True)[..., 0]
    alpha = y / jnp.sum(y, axis=1, keepdims=True)
    return alpha, jnp.isfinite(alpha).all(axis=1)
