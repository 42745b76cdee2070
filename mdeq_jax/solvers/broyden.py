"""Broyden's good method with unit steps, keeping nothing but the steps.

For g(z) = f(z) - z the method keeps an estimate H of the inverse Jacobian of g, starts it at
H_0 = -I and improves it by rank-one updates H_{i+1} = H_i + u_i v_i^T (Broyden 1965; used for
deep equilibrium models by Bai, Kolter, Koltun 2019, 1909.01377, appendix B). The usual
limited-memory form stores both sequences. With unit steps D_i = z_{i+1} - z_i = -H_i g_i they are
redundant:

    u_i = D_{i+1} / |D_i|^2,    v_i = H_i^T D_i,

so H_k y = -y + sum_{i<k} u_i a_i, where a_i = v_i . y follows from the unit lower-triangular system

    a_i = -D_i . y + sum_{j<i} (D_i . u_j) a_j.

With w = H_k g_{k+1} the next step is D_{k+1} = -w |D_k|^2 / (D_k . w + |D_k|^2). One step reads
the history for two inner products and for one combination.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.solvers import step_history
from mdeq_jax.solvers.inverse import InverseEstimate
from mdeq_jax.solvers.loop import iterate
from mdeq_jax.solvers.solution import Solution
from mdeq_jax.solvers.states import Algorithm, Step
from mdeq_jax.solvers.step_history import Access
from mdeq_jax.solvers.validate import check_count, check_start

HISTORY_DTYPES = ("float32", "bfloat16", "float16", "float64")


class _History(NamedTuple):
    """The steps so far and their known inner products.

    Attributes:
        steps: rows `[B, D]` in parts; row i is D_i, or zero before there is one.
        sqnorms: `[B, rows]` |D_i|^2, or zero before there is one.
        inverse: `[B, rows, rows]` inverse of the unit lower-triangular matrix of the system for a;
            rows of the identity before there are steps.
    """

    steps: step_history.Parts
    sqnorms: jax.Array
    inverse: jax.Array


def broyden(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    *,
    max_steps: int = 30,
    tol: float | jax.Array = 1e-3,
    stop_mode: str = "rel",
    history_dtype: str | None = None,
    step_budget: int | jax.Array | None = None,
    record_at: tuple[int, ...] = (),
    trace: Callable | None = None,
    keep_inverse: bool = False,
    pallas: bool | None = False,
    fz0: jax.Array | None = None,
    run: Callable[..., Solution] = iterate,
) -> Solution:
    """Solves f(z) = z by Broyden's method, every sample separately.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start.
        max_steps: most steps; f is evaluated once more than there are steps, and one step fewer is
            stored.
        tol: a sample is finished once its residual is under this. May be traced, and `[B]`.
        stop_mode: "rel" or "abs", see `Solution`.
        history_dtype: type in which the steps are stored ("bfloat16" halves the memory); None:
            that of `z0`, but float32 at least. Inner products are summed in this type either way.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the solution, ascending.
        trace: function of (step, z `[B, D]`, residual `[B]`) that the host calls after the start
            (step 0) and each step, through `jax.debug.callback`. The residual is that of
            `stop_mode`; samples that are finished rest at their best iterate.
        keep_inverse: whether the solution has the `InverseEstimate`. It keeps all the steps in
            memory, `max_steps` states.
        pallas: uses Pallas kernels that read only the filled rows of the history (GPU only); None
            decides by the size of the state, see `kernels.launch.enabled`.
        fz0: `[B, D]` f(z0), if it is known; saves that evaluation.
        run: runs the algorithm; see `stream.settings_of`.

    Returns:
        A `Solution`.

    Raises:
        ValueError, TypeError: an argument is out of range, or f changes the shape or type of z.
    """
    if history_dtype is not None and history_dtype not in HISTORY_DTYPES:
        raise ValueError(
            f"history_dtype must be None or one of {HISTORY_DTYPES}; got {history_dtype!r}."
        )
    check_count("max_steps", max_steps)
    check_start(z0)
    stored = jnp.dtype(history_dtype or jnp.promote_types(z0.dtype, jnp.float32))
    # The last step is read again only by the estimate.
    rows = max_steps if keep_inverse else max(max_steps - 1, 1)
    # Other loops solve each sample in a slot of its own, with its own number of steps.
    access = step_history.choose(pallas, z0, rows, stored, alone=run is iterate)
    solution = run(
        f,
        z0,
        Algorithm(
            init=partial(_empty_history, access, rows, stored),
            update=partial(_update, access),
        ),
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
        trace=trace,
        fz0=fz0,
        keep_algorithm=keep_inverse,
    )
    if keep_inverse:
        steps, sqnorms, lower_inverse = solution.inverse
        inverse = InverseEstimate(
            jnp.concatenate(steps, axis=1), sqnorms, lower_inverse, solution.steps
        )
        solution = solution._replace(inverse=inverse)
    return solution


def _empty_history(access: Access, rows: int, stored: jnp.dtype, z: jax.Array) -> _History:
    batch, products = z.shape[0], jnp.promote_types(z.dtype, jnp.float32)
    return _History(
        steps=step_history.empty(z, access.sizes(rows), stored),
        sqnorms=jnp.zeros((batch, rows), products),
        inverse=jnp.broadcast_to(jnp.eye(rows, dtype=products), (batch, rows, rows)),
    )


def _update(access: Access, history: _History, index: jax.Array, now: Step):
    inverse, delta, stuck = _next_step(access, history, now.gz, index)
    stuck &= now.active
    delta = jnp.where((now.active & ~stuck)[:, None], delta, 0)
    z, sqnorm = (now.z + delta).astype(now.z.dtype), jnp.sum(jnp.square(delta), axis=1)
    steps = step_history.put(history.steps, index, delta)
    # Without the barrier XLA for GPUs keeps the step itself in memory while f is evaluated.
    if hardware.target().platform == "gpu":
        z, sqnorm, steps = lax.optimization_barrier((z, sqnorm, steps))
    sqnorms = history.sqnorms.at[:, index].set(sqnorm, mode="drop")
    return _History(steps, sqnorms, inverse), z, stuck


def _next_step(access: Access, history: _History, gz: jax.Array, index: jax.Array):
    """D_{k+1} from g(z_{k+1}) = gz, where k + 1 = `index`; the first step, D_0, is gz.

    Returns:
        The history's `inverse` with row k, the step `[B, D]`, and `[B]` bool, whether the sample
        has none.
    """
    steps, sqnorms, inverse = history
    rows = sqnorms.shape[1]
    # There is no D_k at the first step, where all of these are zero. A branch for it would
    # synchronise GPUs with the host at every step.
    k = jnp.maximum(index - 1, 0)
    last = step_history.get(steps, k).astype(gz.dtype)
    last_sqnorm = lax.dynamic_index_in_dim(sqnorms, k, axis=1, keepdims=False)
    with_g, with_last = access.inner_products(steps, index, gz, last)

    # Row k of the triangular system: D_k . u_j = D_k . D_{j+1} / |D_j|^2 for j < k. Row k of the
    # inverse follows from the rows above it, which no longer change.
    known = (jnp.arange(rows) < k)[None, :]
    scale = jnp.where(sqnorms > 0, 1 / jnp.where(sqnorms > 0, sqnorms, 1), 0)
    row = jnp.where(known, jnp.roll(with_last, -1, axis=1) * scale, 0)
    inverse_row = jnp.einsum("bj,bji->bi", row, inverse, precision=lax.Precision.HIGHEST)
    inverse_row = inverse_row.at[:, k].set(1)
    inverse = inverse.at[:, k].set(inverse_row)

    a = -jnp.einsum("bij,bj->bi", inverse, with_g, precision=lax.Precision.HIGHEST)
    weights = jnp.roll(jnp.where(known, a * scale, 0), 1, axis=1)  # of D_{i+1}
    w, last_w = access.combination(steps, index, weights, gz, last)
    denominator = last_w + last_sqnorm
    # If the denominator is zero to rounding, the update is singular and the sample has stalled.
    # The same holds where squares over- or underflow (in float32: steps over 1e19, under 1e-19).
    safe = jnp.abs(denominator) > 4 * jnp.finfo(gz.dtype).eps * last_sqnorm
    safe &= jnp.isfinite(denominator)
    factor = jnp.where(safe, -last_sqnorm / jnp.where(safe, denominator, 1), 0)
    first = index == 0
    return inverse, jnp.where(first, -1, factor)[:, None] * w, ~safe & ~first
