"""Data sets and loaders: `load_dataset(config.data)`, then `TrainLoader` and `EvalLoader`."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.data", ("cv2", "sklearn", "tensorflow_datasets", "grain"))

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset
from mdeq_jax.data.loaders.pipeline import EvalLoader, TrainLoader, shard_batch
from mdeq_jax.data.loaders.prefetch import Prefetcher
from mdeq_jax.data.sets import camvid, cifar10, cityscapes, digits, image_folder, imagenet2012
from mdeq_jax.data.vision.label_classes import LabelClass

__all__ = [
    "CLASS_TABLES",
    "DATASETS",
    "IGNORE_LABEL",
    "Dataset",
    "EvalLoader",
    "LabelClass",
    "Prefetcher",
    "TrainLoader",
    "load_dataset",
    "shard_batch",
]

DATASETS = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "imagenet2012": imagenet2012.load,
    "image_folder": image_folder.load,
    "cityscapes": cityscapes.load,
    "camvid": camvid.load,
}
# The labels of each segmentation set: id, name, colour, category, ignored or not.
CLASS_TABLES = {"cityscapes": cityscapes.LABELS, "camvid": camvid.LABELS}
_SEGMENTATION_FIELDS = ("convert_to_rgb", "eval_image_size", "base_size", "scale_factor")
# Fields of `config.data` that only some sets have; for the others they must stay unset.
_OPTIONAL_FIELDS = {
    "image_folder": ("convert_to_rgb",),
    "cityscapes": _SEGMENTATION_FIELDS,
    "camvid": (*_SEGMENTATION_FIELDS, "eval_split"),
}
_ON_ERROR = ("raise", "skip")


def load_dataset(config) -> Dataset:
    """Returns the data set that `config` names.

    Args:
      config: `config.data`; the fields are documented in `configs/default.py`.

    Raises:
      ValueError: an unknown name, a field that the set does not have, an image size that it does
        not have, a label outside the classes, a set prepared in another format.
      FileNotFoundError: `config.data_dir` does not hold the set, or not all of it.
    """
    if config.name not in DATASETS:
        raise ValueError(
            f"config.data.name is {config.name!r}, but must be one of {', '.join(DATASETS)}."
        )
    if config.on_error not in _ON_ERROR:
        raise ValueError(
            f"config.data.on_error is {config.on_error!r}, but must be one of {_ON_ERROR}."
        )
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        raise ValueError(
            f"config.data.image_size is {config.image_size}, but must be (height, width)."
        )
    for field in sorted({name for names in _OPTIONAL_FIELDS.values() for name in names}):
        having = [name for name, fields in _OPTIONAL_FIELDS.items() if field in fields]
        if config[field] and config.name not in having:
            raise ValueError(
                f"config.data.{field} is {config[field]!r}, but {config.name} does not have this "
                f"field, only {', '.join(having)} do: leave it unset."
            )
    return DATASETS[config.name](config)
