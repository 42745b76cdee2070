"""Kernels of linear layers and of 1-D convolutions as parameters, with or without weight norm."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers.conv import normal_001, torch_uniform


def normalize_kernel(v: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel g v / |v|, the norm over all axes but the last (Salimans, Kingma 2016).

    Args:
        v: `[..., C_out]` direction.
        g: `[C_out]` length.
    """
    scale = g / _column_norms(v)
    return v * jnp.expand_dims(scale, tuple(range(v.ndim - 1)))


def _column_norms(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(v.ndim - 1))))


class Kernel(nn.Module):
    """A kernel `[..., C_in, C_out]` as parameters.

    Plain: parameter `kernel`. Weight-normalised: parameters `v` and `g` = |v|.

    Attributes:
        shape: of the kernel; the last axis is the output.
        weight_norm: whether it is weight-normalised.
        initializer: of `kernel` or `v`. None: N(0, 0.01) for `kernel`, and PyTorch's default
            U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for `v`, which the original's initialiser never
            reaches.
    """

    shape: tuple[int, ...]
    weight_norm: bool = False
    initializer: Callable | None = None

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel, weight norm applied."""
        if not self.weight_norm:
            return self.param("kernel", self.initializer or normal_001, self.shape)
        initializer = self.initializer or torch_uniform(math.prod(self.shape[:-1]))
        v = self.param("v", initializer, self.shape)
        g = self.param("g", lambda _: _column_norms(v))
        return normalize_kernel(v, g)


class Dense(nn.Module):
    """Weights of a linear layer: {"kernel": `[C_in, C_out]`, "bias": `[C_out]`}; biases zero.

    Attributes:
        shape: `(C_in, C_out)`.
        weight_norm: whether the kernel is weight-normalised.
        use_bias: whether there is a bias.
    """

    shape: tuple[int, int]
    weight_norm: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        """The weights, weight norm applied."""
        weights = {"kernel": Kernel(self.shape, self.weight_norm, name="weight")()}
        if self.use_bias:
            weights["bias"] = self.param("bias", nn.initializers.zeros, self.shape[1:])
        return weights


def linear(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """x W + b on the last axis of `x`, with the weights of a `Dense`."""
    y = x @ weights["kernel"]
    if "bias" in weights:
        y = y + jnp.expand_dims(weights["bias"], tuple(range(y.ndim - 1)))
    return y
