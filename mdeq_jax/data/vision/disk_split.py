"""Splits that stay on disk: examples are read, decoded and transformed one by one."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from mdeq_jax.data.dataset import TRANSFORM_STREAM, Skipped
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.decoding import ExampleError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MAX_SKIPS = 100  # in a row: more are not just a few bad files


class Record(NamedTuple):
    """An example as it is stored on disk.

    Attributes:
        path: name of the image in errors.
        image: bytes of a JPEG or PNG file.
        label: the class (int), or the bytes of the label map's PNG file.
        label_path: name of the label map in errors.
    """

    path: str
    image: bytes
    label: Any
    label_path: str = ""


class Reader(Protocol):
    """Random access to records. It must be picklable, because workers receive a copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class DiskSplit:
    """A split whose examples are read on demand, and normalised with ImageNet's statistics.

    Attributes:
        reader: reads the encoded examples.
        transform: (record, rng) -> (image uint8 `[H, W, 3]`, label int32 `[...]`).
        on_error: "raise", or "skip", which replaces an unusable example with the next usable one.
    """

    reader: Reader
    transform: Callable[[Record, np.random.Generator], tuple[np.ndarray, np.ndarray]]
    on_error: str
    in_memory = False

    def __len__(self) -> int:
        return len(self.reader)

    def make_batch(
        self, indices: np.ndarray, key: tuple[int, int]
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns {"image": float32 `[B, H, W, 3]`, "label": int32 `[B, ...]`}; see `Split`."""
        examples, skipped = [], []
        for position, index in enumerate(indices.tolist()):
            example, errors = self._example(index, key)
            examples.append(example)
            skipped += [Skipped(position, error) for error in errors]
        shapes = [image.shape[:2] for image, _ in examples]
        if len(set(shapes)) > 1:
            other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
            paths = [self.reader[int(indices[i])].path for i in (0, other)]
            raise ValueError(
                f"{paths[0]} is {shapes[0]} and {paths[1]} is {shapes[other]}: whole images of "
                "different sizes do not make a batch. Set config.data.eval_image_size to a size "
                "(height, width) that all are padded to, or evaluate with a batch of 1."
            )
        batch = np.empty((len(examples), *shapes[0], 3), np.float32)
        for row, (image, _) in zip(batch, examples, strict=True):
            augment.normalize(image, IMAGENET_MEAN, IMAGENET_STD, out=row)
        return {"image": batch, "label": np.stack([label for _, label in examples])}, skipped

    def _example(self, index, key):
        errors = []
        while True:
            # Seeded by example and epoch, so it does not matter which process makes the batch.
            rng = np.random.default_rng((TRANSFORM_STREAM, *key, index))
            try:
                return self.transform(self.reader[index], rng), errors
            except ExampleError as error:
                if self.on_error != "skip":
                    raise
                errors.append(str(error))
                if len(errors) >= min(_MAX_SKIPS, len(self)):
                    raise ValueError(
                        f"{len(errors)} examples in a row cannot be used; the last: {error}"
                    ) from error
                # Depends on the index alone, so every run takes the same replacement.
                index = (index + 1) % len(self)
