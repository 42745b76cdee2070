"""Transforms of images and label maps. All are pure: what is random comes in as an argument."""

import numpy as np


def normalize(images, mean, std, max_value: int = 255) -> np.ndarray:
    """Scales pixels to [0, 1], subtracts `mean` and divides by `std`.

    Args:
      images: uint8 [..., W, 3] of values 0..max_value.
      mean: three floats, RGB.
      std: three floats, RGB.
      max_value: the value that stands for white.

    Returns:
      float32 of the same shape.
    """
    width = images.shape[-2]
    scale = 1.0 / (max_value * np.asarray(std))
    offset = -np.asarray(mean) / np.asarray(std)
    # A row at a time: numpy is slow where the last axis has only three entries.
    rows = images.reshape(-1, width * 3)
    out = rows * np.tile(scale, width).astype(np.float32)
    out += np.tile(offset, width).astype(np.float32)
    return out.reshape(images.shape)


def shift_and_flip(images: np.ndarray, draws: np.ndarray, *, pad: int, flip: bool) -> np.ndarray:
    """Random crops of the images padded with black, and random mirror images.

    Args:
      images: uint8 [B, H, W, 3].
      draws: uniform in [0, 1), [B, 3]: for the row, the column and the flip of each image.
      pad: width of the black border; the crop keeps the size of the image, so that it moves by
        -pad..pad pixels each way.
      flip: mirror the images whose third draw is under 1/2.

    Returns:
      uint8 [B, H, W, 3].
    """
    batch, height, width, _ = images.shape
    padded = np.zeros((batch, height + 2 * pad, width + 2 * pad, 3), images.dtype)
    padded[:, pad : pad + height, pad : pad + width] = images
    top, left = np.floor(draws[:, :2].T * (2 * pad + 1)).astype(np.int64)
    columns = np.broadcast_to(np.arange(width), (batch, width))
    if flip:
        columns = np.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    # [B, 1, 1], [B, H, 1], [B, 1, W] -> [B, H, W]
    return padded[
        np.arange(batch)[:, None, None],
        (top[:, None] + np.arange(height))[:, :, None],
        (left[:, None] + columns)[:, None, :],
    ]
