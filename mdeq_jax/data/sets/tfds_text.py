"""A text data set that TensorFlow Datasets (TFDS) has prepared as array_record."""

import hashlib

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields
from mdeq_jax.data.text import corpus
from mdeq_jax.data.vision import tfds_records

_AT_A_TIME = 1000


def load(config: ConfigDict) -> Dataset:
    """Returns the records of a TFDS data set in order, joined by line breaks.

    Args:
        config: `config.data`. `tfds_name` is the name, with its config if it has several, e.g.
            "tiny_shakespeare". `tfds_feature` is the feature with the text, "text" if None.
            `train_split` is "train" and `eval_split` "test" if None. `unit` is "word" if None.

    Raises:
        FileNotFoundError: the data set is missing.
        ValueError: no name, no such split or feature, or text that is not UTF-8.
    """
    check_optional_fields(
        config, ("train_split", "eval_split", "tfds_name", "tfds_feature", *corpus.FIELDS)
    )
    if not config.tfds_name:
        raise ValueError(
            "config.data.tfds_name is unset: name a text data set of TFDS, e.g. 'tiny_shakespeare'."
        )
    train = _read(config, config.train_split or "train")
    evaluation = _read(config, config.eval_split or "test")
    return corpus.text_dataset(config, train, evaluation, "word")


def _read(config: ConfigDict, split: str) -> corpus.Text:
    name, feature = config.tfds_name, config.tfds_feature or "text"
    source, info = tfds_records.open_split(config.data_dir, name, split, ())
    if feature not in info.features:
        raise ValueError(
            f"config.data.tfds_feature is {feature!r}, but the features of {name} are "
            f"{sorted(info.features)}."
        )
    where = f"{name}, split {split}"
    digest, parts = hashlib.sha256(), []
    for start in range(0, len(source), _AT_A_TIME):
        indices = range(start, min(start + _AT_A_TIME, len(source)))
        for index, fields in zip(indices, source.__getitems__(indices), strict=True):
            data = fields[feature]
            digest.update(data)
            parts.append(corpus.decode_utf8(data, f"{where}[{index}]"))
    if not any(parts):
        raise ValueError(f"{where} is empty: a language model needs text to learn from.")
    return corpus.Text("\n".join(parts) + "\n", where, digest.hexdigest())
