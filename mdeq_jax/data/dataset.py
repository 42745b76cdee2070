"""What a data set is to the loaders: names and sizes, and two splits that make batches."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

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
