"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin, Gray 2016, 1509.09308).

F(2, 3) computes two neighbouring outputs of a 3-tap filter with four multiplications, not six: from
four inputs d and three taps w,

    m = (G w) * (B^T d),    y = A^T m.

Along both axes, a tile of 2x2 outputs takes 16 multiplications instead of 36. The matrices hold
only 0, 1 and 1/2, so results differ from those of a direct convolution by rounding.

B^T d of all tiles is four times as large as the input. What does not fit in the caches is computed
block by block: some images at a time, or some rows of an image. Layers that are not wide
have at least two blocks if there are several images. A block is then rounded alike for any number
of them; as one piece, XLA fuses it with the next layer.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_WIDE = 64  # channels
_TILES = 32  # below, reading the kernel limits the speed, and G w is larger than w
_NARROW_TILES = 256  # the same for layers that are not wide
_RATIO = 20  # C_in C_out / (C_in + C_out): below, the transforms cost what the products save
_WHOLE, _BLOCK = 16 * 2**20, 8 * 2**20  # bytes of B^T d: at once if it has fewer; in a block


def pays_off(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv3x3_tiles` is the faster form on a CPU, measured on two cores.

    Not in an exported program for any batch size, whose blocks would have no fixed size.
    """
    batch, height, width, c_in = x.shape
    fixed = isinstance(x.size, int)
    if not fixed or kernel.shape[:2] != (3, 3) or kernel.dtype.itemsize < 4:
        return False
    c_out, tiles = kernel.shape[3], batch * (height // 2) * (width // 2)
    if min(c_in, c_out) >= _WIDE:
        return tiles >= _TILES
    # Images under 16x16 have short rows, which the transforms read with a stride.
    enough = tiles >= _NARROW_TILES and height * width >= 256
    return enough and c_in * c_out >= _RATIO * (c_in + c_out)


def conv3x3_tiles(x: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
    """Convolution of stride 1 with one zero of padding on every side.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[3, 3, C_in, C_out]`.
        transposed: whether to compute the input gradient of such a convolution, from that of its
            output `[B, H, W, C_out]`. Its kernel is flipped along both axes.

    Returns:
        `[B, H, W, C_out]`, or `[B, H, W, C_in]` if `transposed`.
    """
    batch, height, width, _ = x.shape
    filters = [_filtered(taps, transposed) for taps in _filtered(kernel, transposed)]
    if transposed:
        filters = [[matrix.T for matrix in four] for four in filters]
    images, rows = _block(x.shape, kernel)
    bands = -(-height // rows)
    vertical = (1, 1 + height % 2)

    def convolve(x):
        return _tiles(jnp.pad(x, ((0, 0), vertical, (1, 1 + width % 2), (0, 0))), filters)

    if images == batch and bands == 1:
        return convolve(x)[:, :height, :width]
    if bands > 1:
        x, vertical = _bands(x, rows, bands), (0, 0)
    y = lax.map(convolve, x.reshape(-1, images, *x.shape[-3:]))
    # Several bands are of one image, so this moves nothing.
    return y.reshape(batch, -1, *y.shape[3:])[:, :height, :width]


def _bands(x: jax.Array, rows: int, bands: int) -> jax.Array:
    """`[B, bands, rows + 2, W, C]`: bands of rows of `x`, with the row before and after each."""
    batch, height, *others = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + bands * rows - height), (0, 0), (0, 0)))
    inner = x[:, : bands * rows].reshape(batch, bands, rows, *others)
    after = [x[:, rows + i :: rows][:, :bands, None] for i in range(2)]
    return jnp.concatenate([inner, *after], axis=2)


def _block(shape: tuple[int, ...], kernel: jax.Array) -> tuple[int, int]:
    """Images of an input, and rows of an image, that are computed at a time."""
    batch, rows = shape[0], shape[1] + shape[1] % 2
    image = 4 * rows * shape[2] * max(kernel.shape[2:]) * kernel.dtype.itemsize
    wide = min(kernel.shape[2:]) >= _WIDE
    if (wide or batch == 1) and batch * image <= _WHOLE:
        return batch, rows
    if image <= _BLOCK:
        most = max(1, batch if wide else batch // 2)
        sizes = [n for n in range(1, most + 1) if batch % n == 0 and n * image <= _BLOCK]
        return max(sizes), rows
    return 1, min(rows, max(2, 2 * int(rows * _BLOCK / image / 2)))


def _tiles(x: jax.Array, filters: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """The convolution of `[B, H + 2, W + 2, C_in]`, even H and W, without padding."""
    batch, height, width, channels = x.shape
    shape = batch, height // 2 - 1, width // 2 - 1, filters[0][0].shape[1]
    # Separate products and sums, from which XLA makes smaller kernels than from one array.
    inputs = [_transformed(row, 2) for row in _transformed(x, 1)]
    products = [
        [(d.reshape(-1, channels) @ w).reshape(shape) for d, w in zip(*rows, strict=True)]
        for rows in zip(inputs, filters, strict=True)
    ]
    columns = [_outputs(row) for row in products]  # left and right outputs
    left, right = (_outputs([row[side] for row in columns]) for side in range(2))
    y = jnp.stack([jnp.stack(pair, 3) for pair in zip(left, right, strict=True)], 2)
    return y.reshape(batch, height - 2, width - 2, -1)


def _transformed(x, axis):
    """B^T d for each pair of outputs along `axis`, four arrays."""
    pairs = x.shape[axis] // 2 - 1
    d = [lax.slice_in_dim(x, i, i + 2 * pairs - 1, 2, axis) for i in range(4)]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _filtered(taps, flipped=False):
    """G w from three taps along the first axis, four arrays."""
    w = [taps[i] for i in range(3)]
    outer, middle = (w[0] + w[2]) / 2, w[1] / 2
    return (w[2 * flipped], outer + middle, outer - middle, w[2 - 2 * flipped])


def _outputs(m):
    """A^T m: the first and the second output of each pair."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
