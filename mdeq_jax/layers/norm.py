"""Group and batch normalisation as PyTorch computes them, with statistics in float32 or better."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax import backend

EPS = 1e-5


def group_norm(x: jax.Array, num_groups: int, affine: dict | None = None) -> jax.Array:
    """Group normalisation (Wu, He 2018) over space and the channels of a group.

    Args:
        x: `[B, H, W, C]`.
        num_groups: groups of consecutive channels; divides C.
        affine: `{"scale": [C], "bias": [C]}`, or None for neither.

    Returns:
        `[B, H, W, C]` in the type of `x`.
    """
    _, height, width, channels = x.shape
    size = channels // num_groups
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Sums by channel first, then by group: one pass over x, and no reshape of it. `wide * wide`
    # and not `jnp.square`, whose derivative keeps a second array, 2 x.
    sums = jnp.sum(wide, (1, 2)), jnp.sum(wide * wide, (1, 2))  # [B, C]
    mean, mean_square = (_by_group(s, num_groups) / (height * width * size) for s in sums)
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
def _by_group(x, num_groups):
    """Sums over the channels of each group: `[B, C]` to `[B, groups]`."""
    if backend.on_cpu():
        return jnp.dot(x, _membership(x.shape[1], num_groups, x.dtype), precision="highest")
    return jnp.sum(x.reshape(x.shape[0], num_groups, -1), axis=2)


def _by_channel(x, channels):
    """Each group's value for all its channels: `[B, groups]` to `[B, C]`."""
    if backend.on_cpu():
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


class Affine(nn.Module):
    """Scale and bias of a norm as parameters, ones and zeros; None if not `use`."""

    channels: int
    use: bool = True

    @nn.compact
    def __call__(self) -> dict | None:
        """What `group_norm` takes as `affine`."""
        if not self.use:
            return None
        return {
            "scale": self.param("scale", nn.initializers.ones, (self.channels,)),
            "bias": self.param("bias", nn.initializers.zeros, (self.channels,)),
        }


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe, Szegedy 2015) of `[B, H, W, C]` as `torch.nn.BatchNorm2d`.

    Unlike `flax.linen.BatchNorm` the running variance is the unbiased one.

    Attributes:
        use_affine: whether there are a scale and a bias.
        momentum: weight of the old running statistics, 1 - PyTorch's `momentum`.
        axis_name: pmap axis over which the statistics are averaged; None: each device its own.
    """

    use_affine: bool = True
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises by the batch's statistics if `train`, else by the running ones."""
        channels = x.shape[-1]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train and not self.is_initializing():
            # Two passes: a mean square minus a squared mean loses the digits that they share.
            mean, count = self._mean(wide), x.size // channels
            var = self._mean(jnp.square(wide - mean[None, None, None, :]))
            if self.axis_name is not None:
                count *= lax.axis_size(self.axis_name)
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, var = running_mean.value, running_var.value
        multiplier = lax.rsqrt(var + EPS)
        affine = Affine(channels, self.use_affine, name="affine")()
        if affine is not None:
            multiplier = multiplier * affine["scale"]
        y = (wide - mean[None, None, None, :]) * multiplier[None, None, None, :]
        if affine is not None:
            y = y + affine["bias"][None, None, None, :]
        return y.astype(x.dtype)

    def _mean(self, x):
        """Of each channel, over the batch of all devices if they share it."""
        mean = jnp.mean(x, (0, 1, 2))
        return mean if self.axis_name is None else lax.pmean(mean, self.axis_name)
