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
the history twice, once for inner products (on CPUs once for each of the two) and once for a
combination.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.kernels import broyden_history
from mdeq_jax.solvers.inverse import InverseEstimate
from mdeq_jax.solvers.loop import iterate
from mdeq_jax.solvers.solution import Solution


class _History(NamedTuple):
    """Steps so far, and what is known of their inner products.

    Attributes:
        steps: `[B, rows, D]`; row i is D_i, zero where there is none yet.
        sqnorms: `[B, rows]` |D_i|^2, zero where there is none yet.
        inverse: `[B, rows, rows]` inverse of the unit lower-triangular matrix of the system for a,
            identity where there is no step yet.
    """

    steps: jax.Array
    sqnorms: jax.Array
    inverse: jax.Array


def broyden(
    f: Callable[[jax.Array], jax.Array],
    z0: jax.Array,
    *,
    max_steps: int = 30,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    history_dtype: str | None = None,
    step_budget: int | jax.Array | None = None,
    record_at: tuple[int, ...] = (),
    keep_inverse: bool = False,
    pallas: bool = False,
) -> Solution:
    """Solves f(z) = z by Broyden's method, every sample on its own.

    Args:
        f: `[B, D] -> [B, D]`, each row a function of its own row.
        z0: `[B, D]` start.
        max_steps: most steps; one `[B, D]` buffer less is kept, and `f` is evaluated once more.
        tol: a sample is done once its residual is under this.
        stop_mode: "rel" or "abs", see `Solution`.
        history_dtype: type in which the steps are kept ("bfloat16" halves the memory); that of
            `z0` if None. Inner products are summed in the type of `z0` either way.
        step_budget: ends the loop after this many steps; may be traced (no recompilation).
        record_at: steps after which the best iterates are recorded in the report, ascending.
        keep_inverse: hands out the `InverseEstimate`, and with it all the steps: `max_steps`
            states, which live for as long as it does.
        pallas: reads the history by kernels of our own, and of it only what is filled, for GPUs; on
            CPUs this has no effect.

    Raises:
        ValueError, TypeError: an argument is out of range, or `f` does not keep shape and type.
    """
    dtype = z0.dtype
    # The last step is not read again, save by those who ask for the estimate.
    rows = max_steps if keep_inverse else max(max_steps - 1, 1)
    if history_dtype not in (None, "float32", "bfloat16", "float16", "float64"):
        raise ValueError(
            "history_dtype must be None, 'float32', 'bfloat16', 'float16' or 'float64'; "
            f"got {history_dtype!r}."
        )
    stored = jnp.dtype(history_dtype or dtype)

    def dot(subscripts, history, other):
        return jnp.einsum(
            subscripts,
            history,
            other.astype(history.dtype),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        )

    by_kernels = pallas and hardware.target().platform == "gpu"

    def inner_products(steps, filled, gz, last):
        """`[B, rows]` with each of the two, `[B, D]`; `last` is the last of the filled rows."""
        if by_kernels:
            return broyden_history.inner_products(steps, filled, gz)
        if hardware.target().platform != "gpu":
            return [dot("bnd,bd->bn", steps, other) for other in (gz, last)]
        # One pass over the history for both: XLA computes sums over one array in one kernel.
        return [jnp.sum(steps.astype(dtype) * other[:, None, :], axis=2) for other in (gz, last)]

    def direction(steps, filled, weights, gz, last):
        """w `[B, D]`, and its product with the last step, `[B]`."""
        if by_kernels:
            return broyden_history.direction(steps, filled, weights, gz)
        w = dot("bnd,bn->bd", steps, weights) - gz
        return w, jnp.sum(last * w, axis=1)

    def init(z):
        batch, features = z.shape
        return _History(
            steps=jnp.zeros((batch, rows, features), stored),
            sqnorms=jnp.zeros((batch, rows), dtype),
            inverse=jnp.broadcast_to(jnp.eye(rows, dtype=dtype), (batch, rows, rows)),
        )

    def next_step(history, gz, step):
        """The step from where g is gz, and the history that it takes; the first one is gz."""
        steps, sqnorms, inverse = history
        # D_k led here. There is none yet at the first step, where all of these are zero: a branch
        # for it would make GPUs wait for the host at every step.
        k = jnp.maximum(step - 1, 0)
        last = lax.dynamic_index_in_dim(steps, k, axis=1, keepdims=False).astype(dtype)
        last_sqnorm = lax.dynamic_index_in_dim(sqnorms, k, axis=1, keepdims=False)
        with_g, with_last = inner_products(steps, step, gz, last)

        # Row k of the triangular system: D_k . u_j = D_k . D_{j+1} / |D_j|^2 for j < k. The
        # inverse's row follows from the rows above it, which are its final ones.
        known = (jnp.arange(rows) < k)[None, :]
        scale = jnp.where(sqnorms > 0, 1 / jnp.where(sqnorms > 0, sqnorms, 1), 0)
        row = jnp.where(known, jnp.roll(with_last, -1, axis=1) * scale, 0)
        inverse_row = jnp.einsum("bj,bji->bi", row, inverse, precision=lax.Precision.HIGHEST)
        inverse_row = inverse_row.at[:, k].set(1)
        inverse = inverse.at[:, k].set(inverse_row)

        a = -jnp.einsum("bij,bj->bi", inverse, with_g, precision=lax.Precision.HIGHEST)
        weights = jnp.roll(jnp.where(known, a * scale, 0), 1, axis=1)  # of D_{i+1}
        w, last_w = direction(steps, step, weights, gz, last)
        denominator = last_w + last_sqnorm
        # A zero (or rounded to zero) denominator is a singular update: this sample has stalled.
        # So it has where squares overflow or vanish (in float32: steps over 1e19, under 1e-19).
        safe = jnp.abs(denominator) > 4 * jnp.finfo(dtype).eps * last_sqnorm
        safe &= jnp.isfinite(denominator)
        factor = jnp.where(safe, -last_sqnorm / jnp.where(safe, denominator, 1), 0)
        first = step == 0
        return inverse, jnp.where(first, -1, factor)[:, None] * w, ~safe & ~first

    def update(history, step, z, fz, gz, active):
        inverse, delta, stuck = next_step(history, gz, step)
        stuck &= active
        delta = jnp.where((active & ~stuck)[:, None], delta, 0)
        z, sqnorm = z + delta, jnp.sum(jnp.square(delta), axis=1)
        steps = history.steps.at[:, step].set(delta.astype(stored), mode="drop")
        # Without it the step itself would stay in memory while f is evaluated.
        if hardware.target().platform == "gpu":
            z, sqnorm, steps = lax.optimization_barrier((z, sqnorm, steps))
        sqnorms = history.sqnorms.at[:, step].set(sqnorm, mode="drop")
        return _History(steps, sqnorms, inverse), z, stuck

    solution = iterate(
        f,
        z0,
        init,
        update,
        max_steps=max_steps,
        tol=tol,
        stop_mode=stop_mode,
        step_budget=step_budget,
        record_at=record_at,
        keep_algorithm=keep_inverse,
    )
    if keep_inverse:
        solution = solution._replace(inverse=InverseEstimate(*solution.inverse, solution.steps))
    return solution
