"""Splits in memory, which are transformed a batch at a time."""

import dataclasses

import numpy as np

from mdeq_jax.data.dataset import TRANSFORM_STREAM, Skipped
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.rand_augment import NO_OPERATIONS, RandAugment


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split of decoded images in memory, transformed a batch at a time.

    Attributes:
        images: uint8 `[N, H, W, 3]`, with values 0..max_value.
        labels: int32 `[N]`.
        mean: of pixels scaled to [0, 1].
        std: of pixels scaled to [0, 1].
        max_value: the pixel value that becomes 1 before normalisation.
        pad: width of the black border from which random crops are cut; 0 for no crops.
        flip: mirror an example with probability 1/2.
        rand_augment: operations of a training image, after those.
    """

    images: np.ndarray
    labels: np.ndarray
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_value: int = 255
    pad: int = 0
    flip: bool = False
    rand_augment: RandAugment = NO_OPERATIONS
    in_memory = True

    def __len__(self) -> int:
        return len(self.images)

    def make_batch(
        self, indices: np.ndarray, key: tuple[int, int]
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns {"image": float32 `[B, H, W, 3]`, "label": int32 `[B]`}; see `Split`."""
        images = self.images[indices]
        if self.pad or self.flip:
            # One table of draws per epoch: example i takes row i, in whichever batch it is.
            rng = np.random.default_rng((TRANSFORM_STREAM, *key))
            draws = rng.random((len(self), 3), dtype=np.float32)[indices]
            images = augment.shift_and_flip(images, draws, pad=self.pad, flip=self.flip)
        if self.rand_augment.operations:
            images = self._rand_augmented(images, indices, key)
        images = augment.normalize(images, self.mean, self.std, max_value=self.max_value)
        return {"image": images, "label": self.labels[indices]}, []

    def _rand_augmented(self, images, indices, key):
        """Changes each image in 0..255, with a separate generator."""
        scale = 255 // self.max_value
        changed = [
            self.rand_augment(
                image * np.uint8(scale), np.random.default_rng((TRANSFORM_STREAM, *key, int(i)))
            )
            for image, i in zip(images, indices)
        ]
        return np.stack(changed) // np.uint8(scale)


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Returns `labels` as int32, or raises ValueError if one is outside [0, num_classes)."""
    labels = np.asarray(labels)
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise ValueError(
            f"{where}: the label of example {bad[0]} is {labels[bad[0]]}, but labels must lie in "
            f"[0, {num_classes}) ({bad.size} of {len(labels)} do not). Correct the labels, or "
            "prepare the data set again."
        )
    return labels.astype(np.int32)


def check_image_size(name: str, image_size, required: tuple[int, int]) -> tuple[int, int]:
    """Returns `required`, or raises ValueError if the config asks for another image size."""
    if tuple(image_size) != required:
        raise ValueError(
            f"config.data.image_size is {tuple(image_size)}, but the images of {name} are "
            f"{required}: set config.data.image_size = {required}."
        )
    return required
