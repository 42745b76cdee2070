"""The interface between data sets and loaders: two splits that make batches, and their metadata."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data.text.vocabulary import Vocabulary
from mdeq_jax.data.vision.preprocessing import Preprocessing

IGNORE_LABEL = 255  # of a pixel that neither the loss nor a metric counts

# First entry of each generator's seed: the order and the transforms draw from separate streams.
ORDER_STREAM, TRANSFORM_STREAM = 1, 2

# Fields of `config.data` that only some data sets have.
OPTIONAL_FIELDS = (
    "base_size",
    "convert_to_rgb",
    "crop_fraction",
    "eval_image_size",
    "eval_segment_length",
    "eval_split",
    "eval_stride",
    "rand_augment",
    "rand_augment_magnitude",
    "scale_factor",
    "segment_length",
    "tfds_feature",
    "tfds_name",
    "train_split",
    "unit",
)


class Skipped(NamedTuple):
    """An example of a batch that could not be used and was skipped, as the config asks.

    Attributes:
        position: its row in the batch, which holds another example instead.
        error: why it cannot be used, with the name of the file.
    """

    position: int
    error: str


class Split(Protocol):
    """One split of a data set.

    Attributes:
        in_memory: a batch is cheap to make, so worker processes would only slow it down.
    """

    in_memory: bool

    def __len__(self) -> int: ...

    def make_batch(
        self, indices: np.ndarray, key: tuple[int, int]
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns a batch of examples, transformed and normalised, and the skipped ones.

        The randomness of example i depends on (seed, epoch, i) alone. It depends neither on the
        other examples of the batch nor on the process that makes it.

        Args:
            indices: `[B]`, of the examples.
            key: (seed, epoch).

        Returns:
            {name: `[B, ...]`}, and the examples that were skipped.
        """
        ...


class Order(Protocol):
    """The batches of a split that is read in order.

    Attributes:
        num_steps: batches of a pass over the split.
        identity: settings that a saved position is only valid for, JSON-serialisable.
    """

    @property
    def num_steps(self) -> int:
        """See the class."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """See the class."""
        ...

    def make_batch(
        self, step: int, rows: np.ndarray
    ) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns rows of the batch `step` of a pass, with "mask" `[b]`, and the skipped ones."""
        ...


@runtime_checkable
class InOrderSplit(Protocol):
    """A split whose row r of a batch continues row r of the batch before. It is never shuffled."""

    def columns(self, batch_size: int) -> Order:
        """Returns the batches of a pass.

        Args:
            batch_size: rows over all processes.

        Raises:
            ValueError: the split is too short for so many rows.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its training and its evaluation split.

    Attributes:
        name: as in `config.data.name`.
        task: name of the task that its batches are for, e.g. "classification" (labels `[B]`) or
            "segmentation" (labels `[B, H, W]`).
        train: the split that `TrainLoader` reads.
        eval: the split that `EvalLoader` reads.
        class_names: names of the classes, in the order of the labels; empty without classes.
        image_size: height and width of a training image; None without images.
        mean: RGB, subtracted from pixels in [0, 1]; None without images.
        std: RGB, divides pixels in [0, 1]; None without images.
        crop_fraction: of the shorter side of an evaluated image; images in memory are whole.
        vocabulary: the tokens of a text; None for others.
        notes: lines for the log on what was read.
    """

    name: str
    task: str
    train: Split
    eval: Split
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_fraction: float = 0.875
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    def check_workdir(self, workdir: str | Path) -> None:
        """Refuses a work directory whose weights do not fit these data.

        Raises:
            ValueError: it was trained with another vocabulary, or with other classes of images.
        """
        for known in (self.vocabulary, self.preprocessing):
            if known is not None:
                known.check(workdir)

    def save_to(self, workdir: str | Path) -> None:
        """Writes what a later run, or one without these data, needs to know of them."""
        for known in (self.vocabulary, self.preprocessing):
            if known is not None:
                known.save(workdir)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the images of a classifier; None for other data."""
        size, mean, std = self.image_size, self.mean, self.std
        if self.task != "classification" or size is None or mean is None or std is None:
            return None
        fraction = 1.0 if self.eval.in_memory else self.crop_fraction
        return Preprocessing(self.class_names, size, mean, std, fraction)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels lie in [0, num_classes); `IGNORE_LABEL` marks pixels."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_eval(self) -> int:
        """Number of evaluation examples."""
        return len(self.eval)


def check_optional_fields(config: ConfigDict, supported: tuple[str, ...] = ()) -> None:
    """Refuses a setting that has no effect on the data set.

    Args:
        config: `config.data`.
        supported: those of `OPTIONAL_FIELDS` that the data set `config.name` reads.

    Raises:
        ValueError: another one of them is set.
    """
    for field in OPTIONAL_FIELDS:
        if config[field] and field not in supported:
            raise ValueError(
                f"config.data.{field} is {config[field]!r}, but {config.name} does not have this "
                f"field: leave it unset. (It has {', '.join(supported) or 'no optional fields'}.)"
            )


def choose_eval_split(config: ConfigDict, splits: tuple[str, ...]) -> str:
    """Returns the split that `config.eval_split` names, the first one by default.

    Args:
        config: `config.data`.
        splits: names of the splits with labels.

    Raises:
        ValueError: the data set has no such split.
    """
    split = config.eval_split or splits[0]
    if split not in splits:
        raise ValueError(
            f"config.data.eval_split is {split!r}, but must be "
            f"{' or '.join(map(repr, splits))}, the splits of {config.name} with labels."
        )
    return split
