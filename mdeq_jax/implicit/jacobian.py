"""The size of the Jacobian J = df/dz at a state, as a regulariser and as a measurement."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.problem import Cell, FixedPointProblem, problem_at
from mdeq_jax.solvers.norms import in_float32, safe_norm
from mdeq_jax.tree import PyTree, ravel_batch


def _left_product(problem: FixedPointProblem):
    """The flat state z0 and v -> v^T J there, on flat `[B, D]` arrays."""
    flat, unravel = ravel_batch(problem.z0)
    _, pullback = jax.vjp(lambda flat: ravel_batch(problem.evaluate(unravel(flat)))[0], flat)
    return flat, lambda v: pullback(v)[0]


def jacobian_loss(
    f: Cell | FixedPointProblem,
    params: PyTree = None,
    x: PyTree = None,
    z: PyTree = None,
    *,
    key: jax.Array | None = None,
    probe: PyTree | None = None,
    num_probes: int = 1,
) -> jax.Array:
    """Hutchinson's estimate of |J|_F^2 / numel(z): mean of |v^T J|^2 / numel(z), v ~ N(0, I).

    Bai, Koltun, Kolter 2021 (2106.14342), section 4. Differentiable in `params` and `x`; `z` is
    held constant, as in the original.

    Args:
        f: cell, `f(params, z, x) -> z`; or a `FixedPointProblem`, which brings `params` and `x`.
        params: parameters of the cell.
        x: input injection.
        z: state, leaves `[B, ...]`, usually the equilibrium; by default a problem's `z0`.
        key: random key of the probes, or `[B]` keys, one per sample; not used with `probe`.
        probe: one probe v like `z`, instead of random ones.
        num_probes: number of random probes to average.

    Returns:
        A scalar.

    Raises:
        ValueError: neither or both of `key` and `probe` are given, or `num_probes` is below 1.
        TypeError: a cell without a state, or a problem together with `params` or `x`.
    """
    if (key is None) == (probe is None):
        given = "neither" if key is None else "both"
        raise ValueError(f"Give a random key (key=...) or a probe (probe=...); got {given}.")
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1; got {num_probes}.")
    problem = problem_at(f, params, x, z)
    flat, product = _left_product(problem._replace(z0=lax.stop_gradient(problem.z0)))
    if probe is not None:
        return _sum_of_squares(product(ravel_batch(probe)[0])) / flat.size
    assert key is not None  # as checked above
    keys = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if num_probes == 1:
        return _sum_of_squares(product(_normal(keys, flat))) / flat.size

    def add(total, index):
        return total + _sum_of_squares(product(_normal(_fold_in(keys, index), flat))), None

    # One probe after another: neither memory nor compilation grows with their number.
    zero = in_float32(jnp.zeros((), flat.dtype))
    total, _ = lax.scan(jax.checkpoint(add), zero, jnp.arange(num_probes))
    return total / (num_probes * flat.size)


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(in_float32(x)))


def _normal(key: jax.Array, like: jax.Array) -> jax.Array:
    """N(0, I) like `[B, D]`, from one key or from one per sample."""
    if key.ndim == 0:
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(key)


def _fold_in(key: jax.Array, index: jax.Array) -> jax.Array:
    fold = partial(jax.random.fold_in, data=index)
    return fold(key) if key.ndim == 0 else jax.vmap(fold)(key)


class SpectralRadius(NamedTuple):
    """Result of a power iteration on J^T, for each sample.

    Attributes:
        radius: `[B]` |Rayleigh quotient| after the last step, the original's estimate.
        growth: `[B]` geometric mean of |v^T J| / |v| over the second half of the steps. It is also
            correct for a dominant complex pair of eigenvalues, for which `radius` oscillates.
        residual: `[B]` |v^T J - q v| / |v^T J| after the last step, q the signed quotient. It is
            near zero once v is an eigenvector, which makes `radius` valid. It stays large for a
            complex pair.
        vector: `[B, D]` unit vector v after the last step, flat: the dominant left eigenvector, or
            a vector in the plane of a complex pair.
    """

    radius: jax.Array
    growth: jax.Array
    residual: jax.Array
    vector: jax.Array


def spectral_radius(
    f: Cell | FixedPointProblem,
    params: PyTree = None,
    x: PyTree = None,
    z: PyTree = None,
    *,
    key: jax.Array,
    num_steps: int = 100,
) -> SpectralRadius:
    """Power iteration for the spectral radius of J at `z`, one for each sample.

    Args:
        f: cell, `f(params, z, x) -> z`; or a `FixedPointProblem`, which brings `params` and `x`.
        params: parameters of the cell.
        x: input injection.
        z: state, leaves `[B, ...]`, usually the equilibrium; by default a problem's `z0`.
        key: random key of the start.
        num_steps: number of products with J; the original takes 75 to 400.

    Raises:
        ValueError: `num_steps` is below 2.
        TypeError: a cell without a state, or a problem together with `params` or `x`.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2; got {num_steps}.")
    flat, product = _left_product(problem_at(f, params, x, z))

    def step(v, _):
        vj = product(v)
        size = safe_norm(vj)
        quotient = jnp.sum(vj * v, axis=1)  # |v| = 1
        residual = safe_norm(vj - quotient[:, None] * v) / jnp.maximum(size, 1e-30)
        direction = (vj / jnp.maximum(size, 1e-30)[:, None]).astype(v.dtype)
        return direction, (jnp.abs(quotient), jnp.log(jnp.maximum(size, 1e-30)), residual)

    start = jax.random.normal(key, flat.shape, flat.dtype)
    start = (start / safe_norm(start)[:, None]).astype(flat.dtype)
    vector, (quotients, log_sizes, residuals) = lax.scan(step, start, length=num_steps)
    growth = jnp.exp(jnp.mean(log_sizes[num_steps // 2 :], axis=0))
    return SpectralRadius(quotients[-1], growth, residuals[-1], vector)
