"""Batch normalisation as PyTorch computes it, and the scale and bias of norms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.layers.group_norm import EPS
from mdeq_jax.parallel import mean_over_devices, num_devices


class Affine(nn.Module):
    """Scale and bias of a norm as parameters, initially ones and zeros; None if not `use`."""

    channels: int
    use: bool = True

    @nn.compact
    def __call__(self) -> dict | None:
        """Returns the `affine` of `group_norm`: `{"scale": [C], "bias": [C]}`, or None."""
        if not self.use:
            return None
        return {
            "scale": self.param("scale", nn.initializers.ones, (self.channels,)),
            "bias": self.param("bias", nn.initializers.zeros, (self.channels,)),
        }


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe, Szegedy 2015) of `[B, H, W, C]` as `torch.nn.BatchNorm2d`.

    Unlike in `flax.linen.BatchNorm` the running variance is unbiased.

    Attributes:
        use_affine: whether there are a scale and a bias.
        momentum: weight of the old running statistics, 1 - PyTorch's `momentum`.
        sync: whether the statistics are averaged over the devices of the batch axis.
    """

    use_affine: bool = True
    momentum: float = 0.9
    sync: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises by the batch's statistics if `train`, else by the running ones."""
        channels = x.shape[-1]
        x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train and not self.is_initializing():
            # Two passes: a mean square less a squared mean would cancel the digits they share.
            mean, count = self._mean(x32), x.size // channels
            var = self._mean(jnp.square(x32 - mean[None, None, None, :]))
            if self.sync:
                count *= num_devices()
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, var = running_mean.value, running_var.value
        multiplier = lax.rsqrt(var + EPS)
        affine = Affine(channels, self.use_affine, name="affine")()
        if affine is not None:
            multiplier = multiplier * affine["scale"]
        y = (x32 - mean[None, None, None, :]) * multiplier[None, None, None, :]
        if affine is not None:
            y = y + affine["bias"][None, None, None, :]
        return y.astype(x.dtype)

    def _mean(self, x):
        """`[C]` mean of each channel, over the batch of all devices if they share it."""
        mean = jnp.mean(x, (0, 1, 2))
        return mean_over_devices(mean) if self.sync else mean
