"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin, Gray 2016, 1509.09308).

F(2, 3) computes two neighbouring outputs of a 3-tap filter with four multiplications, not six: from
four inputs d and three taps w,

    m = (G w) * (B^T d),    y = A^T m.

Along both axes, a tile of 2x2 outputs takes 16 multiplications instead of 36. The matrices hold
only 0, 1 and 1/2, so results differ from those of a direct convolution by rounding.
"""

import jax
import jax.numpy as jnp
from jax import lax

_FILTER = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_CHANNELS = 64  # below, the transforms of inputs and outputs cost what the products save
_TILES = 32  # below, reading the kernel limits the speed, and G w is larger than w


def pays_off(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv3x3_tiles` is the faster form on a CPU, measured on two cores."""
    batch, height, width, _ = x.shape
    tiles = batch * (height // 2) * (width // 2)
    wide = min(kernel.shape[2:]) >= _CHANNELS
    return kernel.shape[:2] == (3, 3) and wide and tiles >= _TILES and kernel.dtype.itemsize >= 4


def conv3x3_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1 with one zero of padding on every side.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[3, 3, C_in, C_out]`.

    Returns:
        `[B, H, W, C_out]`.
    """
    batch, height, width, channels = x.shape
    odd = height % 2, width % 2
    x = jnp.pad(x, ((0, 0), (1, 1 + odd[0]), (1, 1 + odd[1]), (0, 0)))
    inputs = _transformed(_transformed(x, 1), 3)  # [4, 4, B, H / 2, W / 2, C_in], columns first
    filters = _filtered(_filtered(kernel, 0), 1).swapaxes(0, 1)  # [4, 4, C_in, C_out]
    products = jnp.einsum(
        "pnc,pco->pno", inputs.reshape(16, -1, channels), filters.reshape(16, channels, -1)
    )
    products = products.reshape(*inputs.shape[:-1], -1)
    y = jnp.stack(_outputs(products), 4)  # [4, B, H / 2, W / 2, 2, C_out]
    y = jnp.stack(_outputs(y), 2)  # [B, H / 2, 2, W / 2, 2, C_out]
    return y.reshape(batch, height + odd[0], width + odd[1], -1)[:, :height, :width]


def _transformed(x, axis):
    """B^T d for each pair of outputs along `axis`, `[4, ..., n / 2 - 1, ...]`."""
    pairs = x.shape[axis] // 2 - 1
    d = [lax.slice_in_dim(x, i, i + 2 * pairs - 1, 2, axis) for i in range(4)]
    return jnp.stack([d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]])


def _filtered(kernel, axis):
    """G w along an axis of three taps."""
    matrix = jnp.asarray(_FILTER, kernel.dtype)
    return jnp.moveaxis(jnp.tensordot(matrix, kernel, (1, axis), precision="highest"), 0, axis)


def _outputs(m):
    """A^T m: the first and the second output of each pair."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
