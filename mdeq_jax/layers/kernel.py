"""Kernels of linear layers and of 1-D convolutions as parameters, with or without weight norm."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers.conv import kernel_norms, normal_001, torch_uniform, weight_norm


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
        g = self.param("g", lambda _: kernel_norms(v))
        return weight_norm(v, g)


class DenseWeights(nn.Module):
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


def apply_dense(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """x W + b on the last axis of `x`, with the weights of a `DenseWeights`."""
    y = x @ weights["kernel"]
    if "bias" in weights:
        y = y + jnp.expand_dims(weights["bias"], tuple(range(y.ndim - 1)))
    return y
