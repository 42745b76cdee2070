"""Group normalisation as PyTorch computes it, with statistics in float32 or better."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.kernels import group_norm as kernels

EPS = 1e-5


def group_norm(
    x: jax.Array,
    num_groups: int,
    affine: dict | None = None,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    pallas: bool = False,
) -> jax.Array:
    """Group normalisation (Wu, He 2018) over space and the channels of a group.

    Args:
        x: `[B, H, W, C]`.
        num_groups: groups of consecutive channels; divides C.
        affine: `{"scale": [C], "bias": [C]}`, or None for neither.
        residual: `[B, H, W, C]` in the type of `x`, added to the result; None: nothing.
        relu: takes the ReLU of that.
        pallas: all of it by one kernel of our own, and its pullback too, for GPUs; on CPUs this has
            no effect. It has no forward mode (`jax.jvp`) then.

    Returns:
        `[B, H, W, C]` in the type of `x`.
    """
    if pallas and hardware.target().platform == "gpu":
        return _by_kernel(num_groups, relu, x, affine, residual)[0]
    y = _plain(x, num_groups, affine)
    if residual is not None:
        y = y + residual
    return nn.relu(y) if relu else y


def _plain(x, num_groups, affine):
    _, height, width, channels = x.shape
    size = channels // num_groups
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Sums by channel first, then by group: one pass over x, and no reshape of it. `wide * wide`
    # and not `jnp.square`, whose derivative keeps a second array, 2 x.
    sums = jnp.sum(wide, (1, 2)), jnp.sum(wide * wide, (1, 2))  # [B, C]
    mean, mean_square = (s / (height * width * size) for s in _by_group(sums, num_groups))
    variance = jnp.maximum(mean_square - jnp.square(mean), 0)
    rstd = lax.rsqrt(variance + EPS)  # [B, groups]
    multiplier, shift = (_by_channel(s, channels) for s in (rstd, -mean * rstd))
    if affine is not None:
        scale, bias = affine["scale"][None, :], affine["bias"][None, :]
        multiplier, shift = multiplier * scale, shift * scale + bias
    y = x * multiplier[:, None, None, :] + shift[:, None, None, :]
    return y.astype(x.dtype)


# On CPUs by products with a matrix of zeros and ones: reshapes and repetitions XLA computes again
# for each element of x there, which makes its passes over x 2 to 4 times slower. On GPUs each
# product would be a kernel of its own.
def _by_group(arrays, num_groups):
    """Sums over the channels of each group: of `[B, C]` arrays `[B, groups]` ones."""
    batch, channels = arrays[0].shape
    if hardware.target().platform == "cpu":
        membership = _membership(channels, num_groups, arrays[0].dtype)
        return [jnp.dot(x, membership, precision="highest") for x in arrays]
    stacked = jnp.stack(arrays)  # so that one kernel sums them all
    return jnp.sum(stacked.reshape(len(arrays), batch, num_groups, -1), axis=3)


def _by_channel(x, channels):
    """Each group's value for all its channels: `[B, groups]` to `[B, C]`."""
    if hardware.target().platform == "cpu":
        return jnp.dot(x, _membership(channels, x.shape[1], x.dtype).T, precision="highest")
    return _repeat(x, channels // x.shape[1])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _repeat(x, times):
    return jnp.repeat(x, times, axis=1)


# Where f is linearised a barrier keeps XLA from rewriting the repetition in other ways for the
# adjoint solve than for the parameters' gradient: f would be computed for each of them.
@_repeat.defjvp
def _repeat_linearized(times, primals, tangents):
    repeated, tangent = (jnp.repeat(x, times, axis=1) for x in (*primals, *tangents))
    return lax.optimization_barrier(repeated), tangent


def _membership(channels, num_groups, dtype):
    """`[C, groups]`: one where the channel is of the group, else zero."""
    return jnp.repeat(jnp.eye(num_groups, dtype=dtype), channels // num_groups, axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_kernel(num_groups, relu, *inputs):
    """From x, affine and residual the result, and statistics that get no gradient."""
    return kernels.normalize(*inputs, num_groups=num_groups, relu=relu, eps=EPS)


def _forward(num_groups, relu, *inputs):
    y, statistics = _by_kernel(num_groups, relu, *inputs)
    return (y, statistics), (inputs, statistics)


def _backward(num_groups, relu, saved, cotangents):
    return _pull_back(num_groups, relu, *saved, cotangents[0])


_by_kernel.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pull_back(num_groups, relu, inputs, statistics, u):
    return kernels.pull_back(u, *inputs, statistics, num_groups=num_groups, relu=relu)


# The derivative of the gradient (the Jacobian loss takes it) is that of the plain form's.
def _pull_back_forward(num_groups, relu, inputs, statistics, u):
    return _pull_back(num_groups, relu, inputs, statistics, u), (inputs, u)


def _pull_back_backward(num_groups, relu, saved, cotangents):
    def plain_pullback(inputs, u):
        def plain(x, affine, residual):
            return group_norm(x, num_groups, affine, residual=residual, relu=relu)

        return jax.vjp(plain, *inputs)[1](u)

    d_inputs, d_u = jax.vjp(plain_pullback, *saved)[1](cotangents)
    return d_inputs, None, d_u


_pull_back.defvjp(_pull_back_forward, _pull_back_backward)
