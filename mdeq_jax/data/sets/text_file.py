"""Any UTF-8 text file, with its last tenth held out."""

from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields
from mdeq_jax.data.text import corpus


def load(config: ConfigDict) -> Dataset:
    """Returns the first nine tenths of a text for training and the rest for evaluation.

    Args:
        config: `config.data`. `data_dir` is the file. `unit` is "character" if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, is not UTF-8 or has no line break.
    """
    check_optional_fields(config, corpus.FIELDS)
    if not config.data_dir:
        raise FileNotFoundError("text_file: set config.data.data_dir to the path of a text file.")
    path = Path(config.data_dir)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: set config.data.data_dir to a text file.")
    text = corpus.read_text(path)
    corpus.require_line_breaks(text)
    parts = corpus.hold_out_last_tenth(text, config.unit or "character")
    return corpus.text_dataset(config, *parts, "character")
