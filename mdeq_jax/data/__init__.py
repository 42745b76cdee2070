"""Data sets and loaders: `load_dataset(config.data)`, then `TrainLoader` and `EvalLoader`."""

from mdeq_jax.extras import require_extra

require_extra(
    "train", "mdeq_jax.data", ("cv2", "grain", "ml_collections", "sklearn", "tensorflow_datasets")
)

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset, Skipped, Split, check_optional_fields
from mdeq_jax.data.loaders.eval_loader import EvalLoader
from mdeq_jax.data.loaders.prefetch import Prefetcher
from mdeq_jax.data.loaders.sampling import shard_batch
from mdeq_jax.data.loaders.train_loader import TrainLoader
from mdeq_jax.data.sets import (
    camvid,
    cifar10,
    cityscapes,
    digits,
    enwik8,
    image_folder,
    image_label_folder,
    imagenet2012,
    pydoc,
    text8,
    text_file,
    tfds_text,
    wikitext103,
)
from mdeq_jax.data.text.vocabulary import Vocabulary, load_vocabulary
from mdeq_jax.data.vision.label_classes import LabelClass

__all__ = [
    "CLASS_TABLES",
    "DATASETS",
    "IGNORE_LABEL",
    "Dataset",
    "EvalLoader",
    "LabelClass",
    "Prefetcher",
    "Skipped",
    "Split",
    "TrainLoader",
    "Vocabulary",
    "check_optional_fields",
    "load_dataset",
    "load_vocabulary",
    "read_class_table",
    "shard_batch",
]

# config.data.name -> the function that loads the data set from `config.data`. A program adds its
# own with `DATASETS["name"] = load`.
DATASETS: dict[str, Callable[[ConfigDict], Dataset]] = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "imagenet2012": imagenet2012.load,
    "image_folder": image_folder.load,
    "image_label_folder": image_label_folder.load,
    "cityscapes": cityscapes.load,
    "camvid": camvid.load,
    "wikitext103": wikitext103.load,
    "enwik8": enwik8.load,
    "text8": text8.load,
    "text_file": text_file.load,
    "tfds_text": tfds_text.load,
    "pydoc": pydoc.load,
}
# The classes of each segmentation data set, with the colours that pictures draw them in; or the
# function that reads them, given `config.data`.
CLASS_TABLES: dict[str, tuple[LabelClass, ...] | Callable[[ConfigDict], tuple[LabelClass, ...]]] = {
    "cityscapes": cityscapes.LABELS,
    "camvid": camvid.LABELS,
    "image_label_folder": image_label_folder.read_classes,
}
_ON_ERROR = ("raise", "skip")


def read_class_table(config: ConfigDict) -> tuple[LabelClass, ...] | None:
    """Returns the classes of the segmentation data set of `config.data`; None if it has no table.

    Raises:
        FileNotFoundError: the table is a file that is missing.
        ValueError: the table is wrong.
    """
    table = CLASS_TABLES.get(config.name)
    return table(config) if callable(table) else table


def load_dataset(config: ConfigDict) -> Dataset:
    """Returns the data set that `config` names.

    Args:
        config: `config.data`; `configs/default.py` documents the fields. A `data_dir` that begins
            with `~` is in the home directory.

    Raises:
        ValueError: an unknown name, a field or an image size that the data set does not have, a
            label outside the classes, or a data set that was prepared in another format.
        FileNotFoundError: `config.data_dir` does not hold the data set, or only part of it.
    """
    if config.name not in DATASETS:
        raise ValueError(
            f"config.data.name is {config.name!r}, but must be one of {', '.join(DATASETS)}."
        )
    if config.on_error not in _ON_ERROR:
        raise ValueError(
            f"config.data.on_error is {config.on_error!r}, but must be one of {_ON_ERROR}."
        )
    if config.data_dir.startswith("~"):
        config = config.copy_and_resolve_references()
        config.data_dir = os.path.expanduser(config.data_dir)
    return DATASETS[config.name](config)
