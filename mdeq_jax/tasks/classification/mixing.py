"""Mixing the images of a batch: mixup and CutMix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SWITCH_PROBABILITY = 0.5  # of CutMix, if both are on


class Mixed(NamedTuple):
    """Mixed images, and the shares of their two labels.

    Attributes:
        images: `[B, H, W, C]`.
        share: `[B]`, of an image's own label; the rest is that of the label at the same place in
            the reversed batch.
    """

    images: jax.Array
    share: jax.Array


def mix(images: jax.Array, key: jax.Array, *, mixup: float, cutmix: float) -> Mixed:
    """Mixes each image with the one at the same place in the reversed batch.

    mixup (Zhang et al. 2017, 1710.09412): s x + (1 - s) x', s ~ Beta(mixup, mixup). CutMix (Yun et
    al. 2019, 1905.04899): a box of area 1 - s at a random place is cut out of x', s ~ Beta(cutmix,
    cutmix), and s becomes what is left of x. A batch draws one s, and one of the two if both are
    on.

    Args:
        images: `[B, H, W, C]`.
        key: of the batch.
        mixup: parameter of the Beta distribution; 0: no mixup.
        cutmix: parameter of the Beta distribution; 0: no CutMix.
    """
    coin, key_mixup, key_cutmix = jax.random.split(key, 3)
    reversed_images = images[::-1]
    results = []
    if mixup > 0:
        share = jax.random.beta(key_mixup, mixup, mixup).astype(images.dtype)
        results.append((share * images + (1 - share) * reversed_images, share))
    if cutmix > 0:
        inside, share = _box(key_cutmix, cutmix, *images.shape[1:3])
        results.append((jnp.where(inside[None, :, :, None], reversed_images, images), share))
    if not results:
        return Mixed(images, jnp.ones(images.shape[:1], images.dtype))
    (mixed, share), (other, other_share) = results[0], results[-1]
    if len(results) == 2:
        use_cutmix = jax.random.bernoulli(coin, SWITCH_PROBABILITY)
        mixed = jnp.where(use_cutmix, other, mixed)
        share = jnp.where(use_cutmix, other_share, share)
    return Mixed(mixed, jnp.broadcast_to(share.astype(images.dtype), images.shape[:1]))


def _box(key, alpha, height, width):
    """`[H, W]`, true within a random box that may reach over the border; the share outside."""
    key_share, key_row, key_column = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha))
    inside = []
    for key_middle, length in ((key_row, height), (key_column, width)):
        size = jnp.floor(length * side)
        middle = jax.random.randint(key_middle, (), 0, length)
        low = jnp.clip(middle - size // 2, 0, length)
        high = jnp.clip(middle + size // 2, 0, length)
        positions = jnp.arange(length)
        inside.append((positions >= low) & (positions < high))
    rows, columns = inside
    box = rows[:, None] & columns[None, :]
    return box, 1 - jnp.sum(box) / (height * width)
