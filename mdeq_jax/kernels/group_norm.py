"""Group norm with residual and ReLU, and its pullback, each in one Pallas kernel.

A program works on some groups of one sample. It reads them for their sums, reads them again (from
the caches, or not at all if they fit into one block) and writes. XLA takes two to four kernels for
this. Arithmetic is in float32 or better. `jnp.maximum` is avoided: Pallas on GPUs drops NaN in it,
and a ReLU would hide a sample that has diverged.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.kernels.channel_programs import Call

# About half a program for each multiprocessor of an H200, and two for images larger than those that
# were measured there.
MIN_PROGRAMS, MIN_PROGRAMS_OF_LARGE_IMAGES = 64, 256
LARGE_IMAGE = 64 * 64


def normalize(
    x: jax.Array,
    affine: dict | None,
    residual: jax.Array | None,
    *,
    num_groups: int,
    relu: bool,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """The group norm of `x`, plus `residual`, with a ReLU after that.

    Args:
        x: `[B, H, W, C]`.
        affine: `{"scale": [C], "bias": [C]}`, or None.
        residual: `[B, H, W, C]`, or None.
        num_groups: groups of consecutive channels.
        relu: whether there is a ReLU.
        eps: added to the variance.

    Returns:
        `[B, H, W, C]` in the type of `x`, and the statistics for `pull_back`: `[B, 2, C]`, mean and
        1 / standard deviation of each channel's group.
    """
    call = Call(x, num_groups)
    statistics = jax.ShapeDtypeStruct((x.shape[0], 2, x.shape[3]), call.dtype)
    y, statistics = call(
        partial(_normalize, call.program, relu, call.count, eps),
        (call.like(x), statistics),
        *map(call.join, (x, affine, residual)),
    )
    return y.reshape(x.shape), statistics


def _normalize(new_program, relu, count, eps, x_ref, affine_refs, residual_ref, y_ref, stats_ref):
    program = new_program()

    def with_square(i):
        x = program.read(x_ref, i)
        return x, x * x

    sums = program.sums(with_square)
    mean, mean_square = (program.over_groups(s) / count for s in sums)
    rstd = lax.rsqrt(_relu(mean_square - mean * mean) + eps)
    program.write_rows(stats_ref, (mean, rstd))
    multiplier, shift = _multiplier_and_shift(mean, rstd, *program.read_affine(affine_refs))

    def write(i, carry):
        y = program.read(x_ref, i) * multiplier[None] + shift[None]
        if residual_ref is not None:
            y += program.read(residual_ref, i)
        program.write(y_ref, i, _relu(y) if relu else y)
        return carry

    program.over_blocks(write, 0)


def _multiplier_and_shift(mean, rstd, scale, bias):
    """The factors by channel with which the norm of x is x * multiplier + shift."""
    multiplier = rstd * scale
    return multiplier, bias - mean * multiplier


def _relu(x):
    return jnp.where(x < 0, 0, x)  # NaN stays NaN


def pull_back(
    u: jax.Array,
    x: jax.Array,
    affine: dict | None,
    residual: jax.Array | None,
    statistics: jax.Array,
    *,
    num_groups: int,
    relu: bool,
) -> tuple[jax.Array, dict | None, jax.Array | None]:
    """u^T times the Jacobian of `normalize` with respect to (x, affine, residual).

    Args:
        u: `[B, H, W, C]`.
        x: `[B, H, W, C]`, the input of `normalize`.
        affine: its scale and bias, or None.
        residual: `[B, H, W, C]` that it added, or None.
        statistics: `[B, 2, C]` that it returned.
        num_groups: its number of groups.
        relu: whether it applied a ReLU.

    Returns:
        The products with respect to x, affine and residual, each like its argument.
    """
    call = Call(x, num_groups)
    sums = jax.ShapeDtypeStruct((x.shape[0], 2, x.shape[3]), call.dtype)
    d_residual_like = None if residual is None or not relu else call.like(residual)
    dx, sums, d_residual = call(
        partial(_pull_back, call.program, relu, call.count),
        (
            call.like(x),
            None if affine is None else sums,
            d_residual_like,
        ),
        *map(call.join, (u, x, affine, residual, statistics)),
    )
    d_affine = None
    if affine is not None:
        d_affine = {
            name: jnp.sum(sums[:, row], 0).astype(affine[name].dtype)
            for row, name in enumerate(("bias", "scale"))
        }
    if d_residual_like is not None:
        d_residual = d_residual.reshape(x.shape)
    elif residual is not None:
        d_residual = u.astype(residual.dtype)
    return dx.reshape(x.shape), d_affine, d_residual


def _pull_back(new_program, relu, count, *refs):
    u_ref, x_ref, affine_refs, residual_ref, stats_ref, dx_ref, sums_ref, d_residual_ref = refs
    program = new_program()
    mean, rstd = program.read_rows(stats_ref, 2)
    scale, bias = program.read_affine(affine_refs)
    multiplier, shift = _multiplier_and_shift(mean, rstd, scale, bias)

    def read(i):
        """The normalised x, and u with zeros where the ReLU is zero."""
        x, u = program.read(x_ref, i), program.read(u_ref, i)
        if relu:
            y = x * multiplier[None] + shift[None]
            if residual_ref is not None:
                y += program.read(residual_ref, i)
            u = jnp.where(y > 0, u, 0)
        return (x - mean[None]) * rstd[None], u

    def with_product(i):
        normalized, u = read(i)
        return u, u * normalized

    sums = program.sums(with_product)
    if sums_ref is not None:
        program.write_rows(sums_ref, sums)
    mean_u, mean_u_normalized = (program.over_groups(s * scale) / count for s in sums)

    def write(i, carry):
        normalized, u = read(i)
        dx = u * scale[None] - mean_u[None] - normalized * mean_u_normalized[None]
        program.write(dx_ref, i, rstd[None] * dx)
        if d_residual_ref is not None:
            program.write(d_residual_ref, i, u)
        return carry

    program.over_blocks(write, 0)


def num_programs(x: jax.Array, num_groups: int) -> int:
    """Programs that a group norm of `x`, `[B, H, W, C]`, launches."""
    return Call(x, num_groups).num_programs


def min_programs(x: jax.Array) -> int:
    """Programs with which the kernels are faster than XLA's form, for `x` `[B, H, W, C]`."""
    large = x.shape[1] * x.shape[2] > LARGE_IMAGE
    return MIN_PROGRAMS_OF_LARGE_IMAGES if large else MIN_PROGRAMS
