"""Image files that the data tests make, and where the real ones are looked for."""

import pathlib

import cv2
import numpy as np

SHARED_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


def picture(height, width, seed=0):
    """A smooth random image, uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(suffix, image):
    """The bytes of an image file; `image` is RGB or grey."""
    if image.ndim == 3:
        image = image[..., ::-1]
    return cv2.imencode(suffix, image)[1].tobytes()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
