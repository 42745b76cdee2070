"""Transforms of encoded examples to the image and label of a batch: one class per task."""

import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import IGNORE_LABEL
from mdeq_jax.data.vision import augment, decoding
from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.disk_split import Record
from mdeq_jax.data.vision.rand_augment import NO_OPERATIONS, RandAugment

# Fields of `config.data` that `SegmentationTransform` reads and other data sets do not have.
SEGMENTATION_FIELDS = ("convert_to_rgb", "eval_image_size", "base_size", "scale_factor")
_INVALID = 254  # in label tables: neither a class nor ignored


def training_image_size(config: ConfigDict) -> tuple[int, int]:
    """Returns `config.data.image_size`, or raises ValueError if it is no (height, width)."""
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        raise ValueError(
            f"config.data.image_size is {config.image_size}, but must be (height, width)."
        )
    return tuple(config.image_size)


@dataclasses.dataclass(frozen=True)
class ClassificationTransform:
    """The ImageNet transform of the original code.

    Training takes a random resized crop (`augment.random_resized_crop_box`) and mirrors it with
    probability 1/2; `rand_augment` follows. Evaluation resizes the shorter side to
    size / crop_fraction and cuts out the middle.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the part in use still has at least as many
    pixels as the result in each direction. The result loses no detail by it.

    Attributes:
        size: height and width of the result.
        num_classes: labels must lie in [0, num_classes).
        train: true for the random transform.
        convert_to_rgb: convert grey, CMYK and other images instead of raising an error.
        rand_augment: operations of a training image, after the mirroring.
        crop_fraction: of the shorter side of an evaluated image.
    """

    size: tuple[int, int]
    num_classes: int
    train: bool
    convert_to_rgb: bool
    rand_augment: RandAugment = NO_OPERATIONS
    crop_fraction: float = 0.875

    @classmethod
    def from_config(
        cls, config: ConfigDict, num_classes: int, *, train: bool, convert_to_rgb: bool
    ) -> Self:
        """Returns the transform of `config.data` for training or evaluation.

        Raises:
            ValueError: a field that cannot work.
        """
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        if not 0 < fraction <= 1:
            raise ValueError(f"config.data.crop_fraction must be in (0, 1]; got {fraction}.")
        return cls(
            training_image_size(config),
            num_classes,
            train and config.augment,
            convert_to_rgb,
            RandAugment.from_config(config),
            fraction,
        )

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 `[H, W, 3]`, and its label, int32 `[]`."""
        header = decoding.read_header(record.image, record.path)
        if not self.convert_to_rgb:
            decoding.check_rgb(header, record.path)
        if not 0 <= record.label < self.num_classes:
            raise ExampleError(
                f"{record.path}: its label is {record.label}, but must lie in "
                f"[0, {self.num_classes}): correct it, or set config.data.on_error='skip'."
            )
        crop = self._random_crop if self.train else self._center_crop
        return crop(record, header, rng), np.asarray(record.label, np.int32)

    def _random_crop(self, record, header, rng):
        box = augment.random_resized_crop_box(header.height, header.width, rng)
        reduction = _reduction(header, box[2:], self.size)
        image = decoding.decode_rgb(record.image, record.path, reduction)
        top, left, height, width = box
        bottom, right = round((top + height) / reduction), round((left + width) / reduction)
        part = image[round(top / reduction) : bottom, round(left / reduction) : right]
        image = augment.resize(part, *self.size)
        image = image[:, ::-1] if rng.random() < 0.5 else image
        return self.rand_augment(image, rng)

    def _center_crop(self, record, header, rng):
        del rng
        height, width = self.size
        scaled = augment.shorter_side_size(
            header.height, header.width, int(max(height, width) / self.crop_fraction)
        )
        reduction = _reduction(header, (header.height, header.width), scaled)
        image = decoding.decode_rgb(record.image, record.path, reduction)
        return augment.center_crop(augment.resize(image, *scaled), height, width)


def _reduction(header: decoding.Header, used: tuple[int, int], size: tuple[int, int]) -> int:
    """Largest reduction at which `used` (height, width) is not smaller than `size`."""
    if not header.is_jpeg:
        return 1
    fits = [r for r in (8, 4, 2) if used[0] // r >= size[0] and used[1] // r >= size[1]]
    return fits[0] if fits else 1


def _whole_size(given) -> tuple[int, int] | None:
    """Returns `config.data.eval_image_size`. The command line turns "None" into (None,)."""
    if given is None or tuple(given) == (None,):
        return None
    if len(given) != 2 or not all(isinstance(side, int) and side > 0 for side in given):
        raise ValueError(
            f"config.data.eval_image_size is {given}, but must be (height, width) that whole "
            "images are padded to, or None for each image's own size."
        )
    return tuple(given)


def label_table(train_ids: dict[int, int]) -> np.ndarray:
    """Returns the uint8 `[256]` table from labels in the files, modulo 256, to train ids."""
    table = np.full(256, _INVALID, np.uint8)
    for label, train_id in train_ids.items():
        table[label % 256] = train_id
    return table


@dataclasses.dataclass(frozen=True)
class SegmentationTransform:
    """The transform of HRNet's segmentation code, which the original code uses.

    Training with `augment` resizes the longer side to int(base_size * (0.5 + k/10) + 0.5), with k
    uniform in 0..scale_factor. It cuts out a random part of `size` and mirrors it with probability
    1/2. An image smaller than `size` is padded at the bottom and right, with pixels that are black
    before normalisation and with `IGNORE_LABEL`.

    Training without `augment` cuts out the middle and does not scale. Evaluation takes the whole
    image. If `size` is given, it is padded at the bottom and right by repeating its last pixels.

    Attributes:
        size: height and width of the result; None keeps each image's size (evaluation only).
        train: true to cut a part out of each image.
        augment: true to choose scale, part and mirroring at random.
        base_size: longer side at scale 1.
        scale_factor: the largest k.
        table: from `label_table`.
        check: (label map `[H, W]` as in the file, its path) -> None; raises ExampleError for a map
            that the table alone would accept.
        convert_to_rgb: convert grey, CMYK and other images instead of raising an error.
    """

    size: tuple[int, int] | None
    train: bool
    augment: bool
    base_size: int
    scale_factor: int
    table: np.ndarray
    convert_to_rgb: bool
    check: Callable[[np.ndarray, str], None] | None = None

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        train: bool,
        base_size: int,
        table: np.ndarray,
        check: Callable[[np.ndarray, str], None] | None = None,
    ) -> Self:
        """Returns the transform of `config.data`, with the data set's `base_size` as default."""
        return cls(
            size=training_image_size(config) if train else _whole_size(config.eval_image_size),
            train=train,
            augment=config.augment,
            base_size=base_size if config.base_size is None else config.base_size,
            scale_factor=16 if config.scale_factor is None else config.scale_factor,
            table=table,
            check=check,
            convert_to_rgb=config.convert_to_rgb,
        )

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 `[H, W, 3]`, and its label map, int32 `[H, W]`."""
        header = decoding.read_header(record.image, record.path)
        if not self.convert_to_rgb:
            decoding.check_rgb(header, record.path)
        image = decoding.decode_rgb(record.image, record.path)
        label = self._decode_label(record)
        if label.shape != image.shape[:2]:
            raise ExampleError(
                f"{record.label_path}: its size is {label.shape}, but that of {record.path} is "
                f"{image.shape[:2]}: they must show one scene. Replace one of them, or set "
                "config.data.on_error='skip'."
            )
        size = self.size
        if size is None:  # evaluation, at the image's own size
            return image, label.astype(np.int32)
        if not self.train:
            image, label = self._pad_whole(image, label, size, record.path)
        elif self.augment:
            image, label = self._random_part(image, label, size, rng)
        else:
            image, label = (augment.center_crop(x, *size) for x in _pad(image, label, size))
        return image, label.astype(np.int32)

    def _random_part(self, image, label, size, rng):
        scale = 0.5 + int(rng.integers(self.scale_factor + 1)) / 10
        image, label = augment.resize_pair(image, label, int(self.base_size * scale + 0.5))
        # Cut before padding, so that only a part of the image is copied.
        rows, columns = augment.random_crop_box(label.shape, size, rng)
        image, label = _pad(image[rows, columns], label[rows, columns], size)
        return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)

    def _pad_whole(self, image, label, size, path):
        if label.shape[0] > size[0] or label.shape[1] > size[1]:
            raise ExampleError(
                f"{path}: its size is {label.shape}, larger than config.data.eval_image_size "
                f"{size}, which whole images are padded to: set a larger one."
            )
        return _pad(image, label, size, value=None)

    def _decode_label(self, record):
        import cv2

        raw = decoding.decode_label_map(record.label, record.label_path)
        if self.check is not None:
            self.check(raw, record.label_path)
        label = cv2.LUT(raw, self.table)
        invalid = label == _INVALID
        if invalid.any():
            raise ExampleError(
                f"{record.label_path}: it holds the label {raw[invalid][0]}, but only "
                f"{np.flatnonzero(self.table != _INVALID).tolist()} are allowed: correct the "
                "label map, or set config.data.on_error='skip'."
            )
        return label


def _pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], value: int | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pads an image with `value` (None: its last pixels) and its label with `IGNORE_LABEL`."""
    return (
        augment.pad_to(image, *size, value=value),
        augment.pad_to(label, *size, value=IGNORE_LABEL),
    )
