"""Data sets and loaders: `load_dataset(config.data)`, then `TrainLoader` and `EvalLoader`."""

from mdeq_jax.data import digits
from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset
from mdeq_jax.data.pipeline import EvalLoader, TrainLoader, shard_batch
from mdeq_jax.data.prefetch import Prefetcher

__all__ = [
    "DATASETS",
    "IGNORE_LABEL",
    "Dataset",
    "EvalLoader",
    "Prefetcher",
    "TrainLoader",
    "load_dataset",
    "shard_batch",
]

DATASETS = {
    "digits": digits.load,
}


def load_dataset(config) -> Dataset:
    """Returns the data set that `config` names.

    Args:
      config: `config.data`; the fields are documented in `configs/default.py`.

    Raises:
      ValueError: an unknown name, an image size that the set does not have, a label outside the
        classes.
      FileNotFoundError: `config.data_dir` does not hold the set.
    """
    if config.name not in DATASETS:
        raise ValueError(
            f"config.data.name is {config.name!r}, but must be one of {', '.join(DATASETS)}."
        )
    return DATASETS[config.name](config)
