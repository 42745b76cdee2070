"""Convolutions in NHWC with symmetric padding, and their kernels as parameters.

`conv2d` is the only convolution of the package. Its derivatives have a form for CPUs: the input's
as an ordinary convolution, the kernel's as one matrix product a tap. XLA for CPUs runs the forms
that autodiff makes 10 (input) to 100 (kernel) times slower inside a loop than outside. Most 3x3
convolutions are computed there with fewer multiplications (`winograd`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import lax

from mdeq_jax import hardware
from mdeq_jax.layers import winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """2-D convolution, padded by (k - 1) / 2 on every side as PyTorch does.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[k, k, C_in, C_out]` with odd k.
        stride: 1 or 2. XLA's "SAME" would pad a stride-2 convolution differently.

    Returns:
        `[B, ceil(H / stride), ceil(W / stride), C_out]`.

    Raises:
        ValueError: another stride, or stride 2 with a kernel other than 3x3.
    """
    size = kernel.shape[0]
    x, kernel = promote_dtype(x, kernel)
    if size == 1 and stride == 1:
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    if not (stride == 1 or (stride == 2 and size == 3)):
        raise ValueError(
            f"A convolution has stride 1, or stride 2 and a 3x3 kernel; got stride {stride} and "
            f"kernel {kernel.shape}."
        )
    pad = ((size - 1) // 2, (size - 1) // 2)
    conv = _conv2d_cpu if hardware.target().platform == "cpu" else _conv2d
    return conv(x, kernel, stride, pad)


def _conv2d(x, kernel, stride, pad):
    """The reference form, with `pad` = (before, after) on both spatial axes."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=DIMENSIONS
    )


def _transposed_kernel(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel with which `_input_gradient` is an ordinary convolution of dL/dy.

    With stride 2 an even row of x meets only the middle tap of three, an odd row the two outer
    ones. Each of the four parities of x is therefore a 2x2 convolution of dL/dy. Their kernels are
    concatenated along the channels.

    Args:
        kernel: `[k, k, C_in, C_out]`.
        stride: 1 or 2.

    Returns:
        `[k, k, C_out, C_in]`, or `[2, 2, C_out, 4 C_in]` for stride 2.
    """
    w = kernel.swapaxes(2, 3)  # [k, k, C_out, C_in]
    if stride == 1:
        return jnp.flip(w, (0, 1))
    none = jnp.zeros_like(w[:1])
    even, odd = jnp.concatenate([w[1:2], none]), jnp.concatenate([w[2:3], w[0:1]])
    none = jnp.zeros_like(even[:, :1])
    parities = [
        jnp.concatenate(pair, axis=1)
        for rows in (even, odd)
        for pair in ((rows[:, 1:2], none), (rows[:, 2:3], rows[:, 0:1]))
    ]
    return jnp.concatenate(parities, axis=3)


def _input_gradient(dy: jax.Array, transposed: jax.Array, shape: tuple[int, ...], stride: int, pad):
    """dL/dx of `_conv2d` from dL/dy, as an ordinary convolution. `shape` is that of x."""
    if stride == 1:
        opposite = tuple(transposed.shape[0] - 1 - p for p in pad)
        return _conv2d_cpu(dy, transposed, 1, opposite)
    # [B, H', W', 4 C_in], the parities side by side
    dx: Any = _conv2d_cpu(dy, transposed, 1, (0, 1))
    dx = rearrange(dx, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
    return dx[:, : shape[1], : shape[2]]


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int, stride: int, pad):
    """dL/dkernel of `_conv2d` from dL/dy: a matrix product for each of the `size`^2 taps."""
    shifts_dy = stride == 1 and dy.shape[-1] < x.shape[-1]  # whichever is smaller
    shifted, other = (dy, x) if shifts_dy else (x, dy)
    before, after = (size - 1 - p for p in pad) if shifts_dy else pad
    padded = jnp.pad(shifted, ((0, 0), (before, after), (before, after), (0, 0)))
    rows, columns = (stride * (n - 1) + 1 for n in other.shape[1:3])
    window = padded.shape[0], rows, columns, padded.shape[3]
    other = rearrange(other, "b h w c -> c (b h w)" if shifts_dy else "b h w c -> (b h w) c")

    def tap(start):
        part = lax.dynamic_slice(padded, (0, *start, 0), window)[:, ::stride, ::stride]
        part = rearrange(part, "b h w c -> (b h w) c")
        return other @ part if shifts_dy else part.T @ other

    # A loop, so that all taps are one piece of code to compile.
    shifts = jnp.indices((size, size)).reshape(2, -1)
    taps = lax.map(tap, tuple(shifts[:, ::-1] if shifts_dy else shifts))
    return taps.reshape(size, size, x.shape[-1], dy.shape[-1])


def _conv2d_cpu(x, kernel, stride, pad):
    """`_conv2d` in the form that is fastest on CPUs."""
    if stride == 1 and pad == (1, 1) and winograd.pays_off(x, kernel):
        return _tiles_cpu(x, kernel, False)
    return _direct_cpu(x, kernel, stride, pad)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _direct_cpu(x, kernel, stride, pad):
    """`_conv2d` with derivatives for CPUs."""
    return _conv2d(x, kernel, stride, pad)


def _direct_forward(x, kernel, stride, pad):
    # The kernel is transposed here because the backward pass may use it inside a loop.
    return _direct_cpu(x, kernel, stride, pad), (x, _transposed_kernel(kernel, stride))


def _direct_backward(stride, pad, saved, dy):
    x, transposed = saved
    dx = _input_gradient(dy, transposed, x.shape, stride, pad)
    size = transposed.shape[0] if stride == 1 else 3
    return dx, _kernel_gradient(x, dy, size, stride, pad)


_direct_cpu.defvjp(_direct_forward, _direct_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiles_cpu(x, kernel, transposed):
    """`winograd.conv3x3_tiles`, whose derivatives are of the same kind."""
    return winograd.conv3x3_tiles(x, kernel, transposed)


def _tiles_forward(x, kernel, transposed):
    return _tiles_cpu(x, kernel, transposed), (x, kernel)


def _tiles_backward(transposed, saved, dy):
    x, kernel = saved
    before, after = (dy, x) if transposed else (x, dy)
    return _tiles_cpu(dy, kernel, not transposed), _kernel_gradient(before, after, 3, 1, (1, 1))


_tiles_cpu.defvjp(_tiles_forward, _tiles_backward)


def torch_uniform(fan_in: int) -> Callable:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for convolutions and linear layers."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# The original's initialiser, which it applies to all convolutions without weight norm.
normal_001 = nn.initializers.normal(0.01)


def weight_norm(v: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel g v / |v|, the norm over all axes but the last (Salimans, Kingma 2016).

    Args:
        v: `[..., C_out]` direction.
        g: `[C_out]` length.
    """
    others = tuple(range(v.ndim - 1))
    return v * jnp.expand_dims(g / kernel_norms(v), others)


def kernel_norms(v: jax.Array) -> jax.Array:
    """Norms of a kernel `[..., C_out]` over all axes but the last, `[C_out]`."""
    return jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(v.ndim - 1))))


class Conv(nn.Module):
    """`conv2d` with its kernel, and a bias if `use_bias`; kernel and bias ~ N(0, 0.01)."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", normal_001, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv2d(x, kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", normal_001, (self.features,))
            y += bias.astype(y.dtype)[None, None, None, :]
        return y
