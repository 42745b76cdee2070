"""The inverse Jacobian that a Broyden solve ends with, as products with vectors.

For g(z) = f(z) - z Broyden's method ends with an estimate H of (dg/dz)^-1,

    H = -I + sum_{i<n} u_i v_i^T,    u_i = D_{i+1} / |D_i|^2,    v_i = H_i^T D_i,

of which it stored only the steps D_i (see `mdeq_jax.solvers.broyden`). Let D, U and V have these
vectors as rows, and let L_ij = D_i . u_j for j < i. The definition of v_i is then V = -D + L V, and

    H y   = -y - U^T M D y,    H^T y = -y - D^T M^T U y,    M = (I - L)^-1.

M was computed during the solve. A product reads the history twice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class InverseEstimate(NamedTuple):
    """Broyden's H at the solution's state of each sample. `K` is the solver's `max_steps`.

    Attributes:
        steps: `[B, K, D]` steps D_i that led there, and possibly later ones.
        sqnorms: `[B, K]` |D_i|^2.
        lower_inverse: `[B, K, K]` M.
        count: `[B]` int32, number of steps that led to the state. H has count - 1 rank-one
            updates: it is the estimate that the last of these steps was taken with.
    """

    steps: jax.Array
    sqnorms: jax.Array
    lower_inverse: jax.Array
    count: jax.Array


def inverse_product(estimate: InverseEstimate, y: jax.Array) -> jax.Array:
    """H y of each sample, `[B, D]` to `[B, D]`; -y if H y is not finite."""
    inner = -_apply(estimate.lower_inverse, _inner(estimate, y))
    weights = jnp.roll(inner * _scale(estimate), 1, axis=1)  # u_i is a multiple of D_{i+1}
    return _finite(_combine(estimate, weights) - y, -y)


def transposed_inverse_product(estimate: InverseEstimate, y: jax.Array) -> jax.Array:
    """H^T y of each sample, `[B, D]` to `[B, D]`; -y if H^T y is not finite."""
    inner = jnp.roll(_inner(estimate, y), -1, axis=1) * _scale(estimate)
    weights = _apply(estimate.lower_inverse.swapaxes(1, 2), inner)
    return _finite(-y - _combine(estimate, weights), -y)


def _scale(estimate):
    """`[B, K]` 1 / |D_i|^2 for the updates i < count - 1, else 0."""
    index = jnp.arange(estimate.sqnorms.shape[1])[None, :]
    used = (index < estimate.count[:, None] - 1) & (estimate.sqnorms > 0)
    return jnp.where(used, 1 / jnp.where(used, estimate.sqnorms, 1), 0)


def _apply(matrix, vector):
    return jnp.einsum("bij,bj->bi", matrix, vector, precision=lax.Precision.HIGHEST)


def _inner(estimate, y):
    """`[B, K]` inner products D_i . y."""
    steps = estimate.steps
    return jnp.einsum(
        "bkd,bd->bk",
        steps,
        y.astype(steps.dtype),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=y.dtype,
    )


def _combine(estimate, weights):
    """`[B, D]` sum of the steps by `[B, K]` weights."""
    steps = estimate.steps
    return jnp.einsum(
        "bkd,bk->bd",
        steps,
        weights.astype(steps.dtype),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=weights.dtype,
    )


def _finite(product, otherwise):
    return jnp.where(jnp.isfinite(product).all(axis=1, keepdims=True), product, otherwise)
