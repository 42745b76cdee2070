"""RandAugment (Cubuk et al. 2019, 1909.13719): random operations on uint8 images.

The operations and their scales are those of the TPU implementation of AutoAugment and RandAugment:
at magnitude 10 an operation is as strong as it is in AutoAugment's search space, and magnitudes
above 10 go on from there.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np
from ml_collections import ConfigDict

FIELDS = ("rand_augment", "rand_augment_magnitude")  # of `config.data`
FULL_MAGNITUDE = 10
_FILL = (128, 128, 128)  # of pixels that come from outside the image
_GRAY = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Random operations, one after the other.

    Attributes:
        operations: how many, each drawn uniformly from `OPERATIONS`.
        magnitude: the magnitude of each is a whole number, uniform in 0..magnitude.
    """

    operations: int
    magnitude: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Returns the operations of `config.data`, none for `rand_augment=0`.

        Raises:
            ValueError: a negative number, or operations on images that are not augmented.
        """
        count, magnitude = config.rand_augment, config.rand_augment_magnitude
        if count < 0 or (magnitude is not None and magnitude < 0):
            raise ValueError(
                "config.data.rand_augment and rand_augment_magnitude must not be negative; got "
                f"{count} and {magnitude}."
            )
        if magnitude is not None and not count:
            raise ValueError(
                f"config.data.rand_augment_magnitude={magnitude} has no effect with rand_augment=0:"
                " leave it unset, or set the number of operations."
            )
        if count and not config.augment:
            raise ValueError(
                f"config.data.rand_augment={count} needs config.data.augment=True, which switches "
                "the random transforms on."
            )
        return cls(count, FULL_MAGNITUDE if magnitude is None else magnitude)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the changed uint8 `[H, W, 3]`."""
        names = list(OPERATIONS)
        for _ in range(self.operations):
            operation = OPERATIONS[names[rng.integers(len(names))]]
            strength = int(rng.integers(self.magnitude + 1)) / FULL_MAGNITUDE
            image = operation(image, strength, 1.0 if rng.random() < 0.5 else -1.0, rng)
        return image


NO_OPERATIONS = RandAugment(0, 0)


def _blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Extrapolates from `degenerate` (0) through the image (1)."""
    degenerate = degenerate.astype(np.float32)
    return np.clip(degenerate + factor * (image - degenerate), 0, 255).astype(np.uint8)


def _factor(strength: float) -> float:
    """Of the enhancing operations: 0.1 to 1.9."""
    return 1.8 * strength + 0.1


def _gray(image: np.ndarray) -> np.ndarray:
    """`[H, W, 1]`."""
    return np.floor(image @ _GRAY + 0.5)[..., None]


def auto_contrast(image, strength, sign, rng):
    """Stretches each channel to 0..255."""
    low = image.min((0, 1)).astype(np.float64)
    span = image.max((0, 1)) - low
    scale = np.where(span > 0, 255 / np.maximum(span, 1), 1)
    low = np.where(span > 0, low, 0)
    return np.clip(np.floor(image * scale - low * scale), 0, 255).astype(np.uint8)


def equalize(image, strength, sign, rng):
    """Equalises the histogram of each channel."""
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        histogram = np.bincount(channel.reshape(-1), minlength=256)
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        if step:
            before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
            channel = np.minimum((before + step // 2) // step, 255).astype(np.uint8)[channel]
        channels.append(channel)
    return np.stack(channels, axis=-1)


def invert(image, strength, sign, rng):
    """Replaces a value by 255 minus it."""
    return 255 - image


def posterize(image, strength, sign, rng):
    """Keeps the int(4 strength) highest bits."""
    bits = min(int(4 * strength), 8)
    return image & np.uint8(256 - 2 ** (8 - bits) if bits else 0)


def solarize(image, strength, sign, rng):
    """Inverts values from int(256 strength) on."""
    return np.where(image < int(256 * strength), image, 255 - image)


def solarize_add(image, strength, sign, rng):
    """Adds int(110 strength) to values below 128."""
    added = np.clip(image.astype(np.int32) + int(110 * strength), 0, 255).astype(np.uint8)
    return np.where(image < 128, added, image)


def color(image, strength, sign, rng):
    """Blends with the grey image."""
    return _blend(np.broadcast_to(_gray(image), image.shape), image, _factor(strength))


def contrast(image, strength, sign, rng):
    """Blends with the mean grey value."""
    mean = np.floor(_gray(image).mean() + 0.5)
    return _blend(np.full(image.shape, mean), image, _factor(strength))


def brightness(image, strength, sign, rng):
    """Blends with black."""
    return _blend(np.zeros(image.shape), image, _factor(strength))


def sharpness(image, strength, sign, rng):
    """Blends with the smoothed image, whose outermost pixels are those of the image."""
    import cv2

    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel / 13)[1:-1, 1:-1]
    return _blend(smooth, image, _factor(strength))


def _affine(image, matrix):
    """Fetches each pixel (x, y) from `matrix` (x, y, 1), bilinearly."""
    import cv2

    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        np.asarray(matrix, np.float64),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_FILL,
    )


def rotate(image, strength, sign, rng):
    """Turns by 30 strength degrees about the middle."""
    angle = np.deg2rad(30 * strength * sign)
    y, x = ((side - 1) / 2 for side in image.shape[:2])
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    return _affine(image, matrix)


def shear_x(image, strength, sign, rng):
    """Shifts each row by 0.3 strength pixels more than the one above."""
    return _affine(image, [[1, 0.3 * strength * sign, 0], [0, 1, 0]])


def shear_y(image, strength, sign, rng):
    """Shifts each column by 0.3 strength pixels more than the one before."""
    return _affine(image, [[1, 0, 0], [0.3 * strength * sign, 1, 0]])


def translate_x(image, strength, sign, rng):
    """Shifts by 0.45 strength of the width."""
    return _affine(image, [[1, 0, 0.45 * strength * sign * image.shape[1]], [0, 1, 0]])


def translate_y(image, strength, sign, rng):
    """Shifts by 0.45 strength of the height."""
    return _affine(image, [[1, 0, 0], [0, 1, 0.45 * strength * sign * image.shape[0]]])


def cutout(image, strength, sign, rng):
    """Greys a square of side 80/224 strength of the shorter side, at a random middle."""
    half = int(40 / 224 * strength * min(image.shape[:2]))
    y, x = (int(rng.integers(side)) for side in image.shape[:2])
    image = image.copy()
    image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = _FILL
    return image


# Each takes an image, a strength (1 at magnitude 10), a sign, and a generator.
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "rotate": rotate,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "cutout": cutout,
}
