"""Convolutions in NHWC with symmetric padding, and their kernels as parameters.

`conv2d` is the only convolution of the package. Its derivative with respect to the input is
written by hand for CPUs, where XLA runs the form that autodiff writes (kernel axes swapped, or a
dilated input) about ten times slower inside a loop than an ordinary convolution.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """2-D convolution, padded by (k - 1) / 2 on every side as PyTorch does.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[k, k, C_in, C_out]` with odd k.
        stride: 1 or 2. (XLA's "SAME" would pad a stride-2 convolution differently.)

    Returns:
        `[B, ceil(H / stride), ceil(W / stride), C_out]`.
    """
    if kernel.shape[0] == 1 and stride == 1:
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    if jax.default_backend() == "cpu":
        return _conv2d_cpu(x, kernel, stride)
    return _conv2d(x, kernel, stride)


def _conv2d(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=DIMENSIONS
    )


def _input_gradient(dy: jax.Array, kernel: jax.Array, size: tuple[int, int], stride: int):
    """dL/dx of `_conv2d` from dL/dy, as an ordinary convolution."""
    if stride == 1:
        return _conv2d(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1)
    # Stride 2, 3x3: an even row of x meets only the middle tap, an odd row the two outer ones. So
    # each of the four parities of x is a 2x2 convolution of dy; all four run as one and are then
    # interleaved.
    w = kernel.swapaxes(2, 3)  # [3, 3, C_out, C_in]
    none = jnp.zeros_like(w[:1])
    even, odd = jnp.concatenate([w[1:2], none]), jnp.concatenate([w[2:3], w[0:1]])
    none = jnp.zeros_like(even[:, :1])
    parities = [
        jnp.concatenate(pair, axis=1)
        for rows in (even, odd)
        for pair in ((rows[:, 1:2], none), (rows[:, 2:3], rows[:, 0:1]))
    ]
    batch, height, width, _ = dy.shape
    c_in = kernel.shape[2]
    dx = lax.conv_general_dilated(
        dy,
        jnp.concatenate(parities, axis=3),
        (1, 1),
        ((0, 1), (0, 1)),
        dimension_numbers=DIMENSIONS,
    ).reshape(batch, height, width, 2, 2, c_in)
    dx = dx.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, c_in)
    return dx[:, : size[0], : size[1]]


_conv2d_cpu = jax.custom_vjp(_conv2d, nondiff_argnums=(2,))


def _cpu_forward(x, kernel, stride):
    if stride not in (1, 2) or (stride == 2 and kernel.shape[0] != 3):
        raise ValueError(
            f"A convolution has stride 1, or stride 2 and a 3x3 kernel; got stride {stride} and "
            f"kernel {kernel.shape}."
        )
    return _conv2d(x, kernel, stride), (x, kernel)


def _cpu_backward(stride, saved, dy):
    x, kernel = saved
    _, kernel_pullback = jax.vjp(lambda kernel: _conv2d(x, kernel, stride), kernel)
    return _input_gradient(dy, kernel, x.shape[1:3], stride), kernel_pullback(dy)[0]


_conv2d_cpu.defvjp(_cpu_forward, _cpu_backward)


def torch_uniform(fan_in: int) -> Callable:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for convolutions and linear layers."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# The original's initialiser of every convolution that it reaches.
normal_001 = nn.initializers.normal(0.01)


def weight_norm(v: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel g v / |v|, the norm over all axes but the last (Salimans, Kingma 2016).

    Args:
        v: `[k, k, C_in, C_out]` direction.
        g: `[C_out]` length.
    """
    return v * (g / jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1, 2))))[None, None, None, :]


class ConvKernel(nn.Module):
    """A convolution kernel `[k, k, C_in, C_out]` as parameters.

    Plain: parameter `kernel` ~ N(0, 0.01). Weight-normalised: parameters `v`, at PyTorch's default
    initialisation (which the original leaves in place), and `g` = |v|.
    """

    size: int
    in_channels: int
    out_channels: int
    weight_norm: bool = False

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel, weight norm applied."""
        shape = (self.size, self.size, self.in_channels, self.out_channels)
        if not self.weight_norm:
            return self.param("kernel", normal_001, shape)
        v = self.param("v", torch_uniform(self.size**2 * self.in_channels), shape)
        g = self.param("g", lambda _: jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1, 2))))
        return weight_norm(v, g)


class Conv(nn.Module):
    """`conv2d` with its kernel, and a bias if `use_bias`; kernel and bias ~ N(0, 0.01)."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, H', W', features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", normal_001, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        y = conv2d(x, kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", normal_001, (self.features,))
            y += bias.astype(y.dtype)[None, None, None, :]
        return y
