"""What a data set is to the loaders: names and sizes, and two splits that make batches."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from mdeq_jax.data import augment

IGNORE_LABEL = 255  # of a pixel that neither the loss nor a metric counts

# First entry of each generator's seed: the order and the transforms draw from separate streams.
ORDER_STREAM, TRANSFORM_STREAM = 1, 2


class Skipped(NamedTuple):
    """An example of a batch that could not be used, where the config says to skip those.

    Attributes:
      position: in the batch; another example stands there.
      error: what is wrong with it, naming the file.
    """

    position: int
    error: str


class Split(Protocol):
    """One split of a data set.

    Attributes:
      in_memory: a batch is cheap to make, so that worker processes would only slow it down.
    """

    in_memory: bool

    def __len__(self) -> int: ...

    def make_batch(
        self, indices: np.ndarray, key: tuple[int, int]
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns the examples `indices` [B], transformed and normalised, and what was skipped.

        `key` is (seed, epoch). What is random about example i depends on (seed, epoch, i) alone:
        not on the batch that it is in, nor on the process that makes it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its training and its evaluation split.

    Attributes:
      name: as in `config.data.name`.
      task: "classification" (labels [B]) or "segmentation" (labels [B, H, W]).
      class_names: one name a class, in the order of the labels.
      image_size: height and width of a training image.
      train: the split that `TrainLoader` reads.
      eval: the split that `EvalLoader` reads.
      mean: of the pixels in [0, 1] that was subtracted, RGB.
      std: of the pixels in [0, 1] that was divided by, RGB.
    """

    name: str
    task: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    train: Split
    eval: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """Number of classes; labels lie in [0, num_classes), or are `IGNORE_LABEL`."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_eval(self) -> int:
        """Number of evaluation examples."""
        return len(self.eval)


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split held in memory, decoded, and transformed a whole batch at a time.

    Attributes:
      images: uint8 [N, H, W, 3], of values 0..max_value.
      labels: int32 [N].
      mean: of pixels scaled to [0, 1].
      std: of pixels scaled to [0, 1].
      max_value: the pixel value that becomes 1 before normalisation.
      pad: random crops are cut from the image padded by this many black pixels; 0 is no crop.
      flip: mirror an example with probability 1/2.
    """

    images: np.ndarray
    labels: np.ndarray
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_value: int = 255
    pad: int = 0
    flip: bool = False
    in_memory = True

    def __len__(self) -> int:
        return len(self.images)

    def make_batch(
        self, indices: np.ndarray, key: tuple[int, int]
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns {"image": float32 [B, H, W, 3], "label": int32 [B]}; see `Split`."""
        images = self.images[indices]
        if self.pad or self.flip:
            # One table of draws an epoch: row i belongs to example i whatever its batch.
            rng = np.random.default_rng((TRANSFORM_STREAM, *key))
            draws = rng.random((len(self), 3), dtype=np.float32)[indices]
            images = augment.shift_and_flip(images, draws, pad=self.pad, flip=self.flip)
        images = augment.normalize(images, self.mean, self.std, max_value=self.max_value)
        return {"image": images, "label": self.labels[indices]}, []


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
