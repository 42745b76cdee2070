"""Group normalisation with PyTorch's definition, and statistics in float32 or better.

The variance is the mean square minus the squared mean, which takes one pass over the data. It loses
digits where the mean of a group is far larger than its deviation: the largest error in float32 is
3e-6 at a ratio of 3, 2e-4 at 30 and 4e-3 at 100 (4 x 32 x 32 x 16, 4 groups).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.kernels import group_norm as kernels
from mdeq_jax.kernels.launch import enabled

EPS = 1e-5


@jax.named_scope("group_norm")  # for profiles
def group_norm(
    x: jax.Array,
    num_groups: int,
    affine: dict | None = None,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    pallas: bool | None = False,
) -> jax.Array:
    """Group normalisation (Wu, He 2018) over space and the channels of a group.

    Args:
        x: `[B, H, W, C]`.
        num_groups: groups of consecutive channels; divides C.
        affine: `{"scale": [C], "bias": [C]}`, or None for neither.
        residual: `[B, H, W, C]` in the type of `x`, added to the result; None: nothing.
        relu: whether to apply a ReLU after that.
        pallas: computes all of it in one Pallas kernel, and its pullback in another (GPU only). It
            does not support forward mode (`jax.jvp`) then. None decides by the batch size, see
            `kernels.launch.enabled`.

    Returns:
        `[B, H, W, C]` in the type of `x`.
    """
    programs = kernels.num_programs(x, num_groups)
    with_pallas = enabled(pallas, programs, kernels.min_programs(x))
    form = _pallas_group_norm if with_pallas else _reference_group_norm
    return form(num_groups, relu, x, affine, residual)


def _reference_group_norm(num_groups, relu, x, affine, residual):
    _, height, width, channels = x.shape
    size = channels // num_groups
    grouping = _GROUPINGS[hardware.target().platform]
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Sums by channel first, then by group: one pass over x, and no reshape of it. `x32 * x32`
    # instead of `jnp.square`, whose derivative keeps a second array, 2 x.
    sums = jnp.sum(x32, (1, 2)), jnp.sum(x32 * x32, (1, 2))  # [B, C]
    mean, mean_square = (s / (height * width * size) for s in grouping.sums(sums, num_groups))
    variance = jnp.maximum(mean_square - jnp.square(mean), 0)
    rstd = lax.rsqrt(variance + EPS)  # [B, groups]
    multiplier, shift = (grouping.repeat(s, channels) for s in (rstd, -mean * rstd))
    if affine is not None:
        scale, bias = affine["scale"][None, :], affine["bias"][None, :]
        multiplier, shift = multiplier * scale, shift * scale + bias
    y = x * multiplier[:, None, None, :] + shift[:, None, None, :]
    y = y.astype(x.dtype)
    if residual is not None:
        y = y + residual
    return nn.relu(y) if relu else y


class _Grouping(NamedTuple):
    """One way from channels to groups and back.

    Attributes:
        sums: (`[B, C]` arrays, number of groups) -> `[B, groups]` arrays, the sums over the
            channels of each group.
        repeat: (`[B, groups]`, number of channels) -> `[B, C]`, each group's value for all its
            channels.
    """

    sums: Callable
    repeat: Callable


def _sums(arrays, num_groups):
    return [jnp.sum(rearrange(x, "b (g c) -> b g c", g=num_groups), axis=2) for x in arrays]


def _repeat(x, channels):
    return jnp.repeat(x, channels // x.shape[1], axis=1)


def _cpu_sums(arrays, num_groups):
    """A product with a matrix of zeros and ones.

    XLA for CPUs fuses reshapes and repetitions into its passes over x and computes them again for
    each element, which makes these passes 2 to 4 times slower.
    """
    membership = _membership(arrays[0].shape[1], num_groups, arrays[0].dtype)
    return [jnp.dot(x, membership, precision="highest") for x in arrays]


def _cpu_repeat(x, channels):
    return jnp.dot(x, _membership(channels, x.shape[1], x.dtype).T, precision="highest")


def _membership(channels, num_groups, dtype):
    """`[C, groups]`: one where the channel is in the group, else zero."""
    return jnp.repeat(jnp.eye(num_groups, dtype=dtype), channels // num_groups, axis=0)


def _gpu_sums(arrays, num_groups):
    """All sums in one kernel."""
    return jnp.sum(rearrange(jnp.stack(arrays), "n b (g c) -> n b g c", g=num_groups), axis=3)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _gpu_repeat(x, channels):
    return _repeat(x, channels)


# Without the barrier XLA rewrites the repetition differently for the adjoint solve than for the
# gradient of the parameters, and then evaluates f once for each of them.
@_gpu_repeat.defjvp
def _gpu_repeat_jvp(channels, primals, tangents):
    repeated, tangent = (_repeat(x, channels) for x in (*primals, *tangents))
    return lax.optimization_barrier(repeated), tangent


_REFERENCE = _Grouping(_sums, _repeat)
_GROUPINGS = {
    "cpu": _Grouping(_cpu_sums, _cpu_repeat),
    "gpu": _Grouping(_gpu_sums, _gpu_repeat),
    "tpu": _REFERENCE,
}


def _pallas_group_norm(num_groups, relu, x, affine, residual):
    normalized: Any = _normalize(num_groups, relu, x, affine, residual)
    return normalized[0]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(num_groups, relu, *inputs):
    """The result and the statistics, which get no gradient, from x, affine and residual."""
    return kernels.normalize(*inputs, num_groups=num_groups, relu=relu, eps=EPS)


def _normalize_forward(num_groups, relu, *inputs):
    normalized: Any = _normalize(num_groups, relu, *inputs)
    y, statistics = normalized
    return (y, statistics), (inputs, statistics)


def _normalize_backward(num_groups, relu, saved, cotangents):
    inputs, statistics = saved
    return _pull_back(num_groups, relu, inputs, statistics, cotangents[0])


_normalize.defvjp(_normalize_forward, _normalize_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pull_back(num_groups, relu, inputs, statistics, u):
    x, affine, residual = inputs
    return kernels.pull_back(u, x, affine, residual, statistics, num_groups=num_groups, relu=relu)


def _pull_back_forward(num_groups, relu, inputs, statistics, u):
    return _pull_back(num_groups, relu, inputs, statistics, u), (inputs, u)


def _pull_back_backward(num_groups, relu, saved, cotangents):
    """The derivative of the reference form's pullback, which the Jacobian loss needs."""

    def reference_pullback(inputs, u):
        return jax.vjp(partial(_reference_group_norm, num_groups, relu), *inputs)[1](u)

    d_inputs, d_u = jax.vjp(reference_pullback, *saved)[1](cotangents)
    return d_inputs, None, d_u


_pull_back.defvjp(_pull_back_forward, _pull_back_backward)
