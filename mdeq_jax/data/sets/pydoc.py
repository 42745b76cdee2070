"""Python's language reference, which every Python carries as `pydoc_data.topics`."""

import hashlib

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields
from mdeq_jax.data.text import corpus


def load(config: ConfigDict) -> Dataset:
    """Returns the language reference, about 465,000 characters, with the last tenth held out.

    The text depends on the version of Python, so results do, too.

    Args:
        config: `config.data`. `unit` is "character" if None.
    """
    check_optional_fields(config, corpus.FIELDS)
    parts = corpus.hold_out_last_tenth(read_topics(), config.unit or "character")
    return corpus.text_dataset(config, *parts, "character")


def read_topics() -> corpus.Text:
    """Returns the topics in the order of their names, joined.

    Raises:
        FileNotFoundError: this Python lacks them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "This Python does not have pydoc_data.topics, the text of data.name='pydoc'. Install "
            "the full standard library, or take a text file: data.name='text_file' with "
            "data.data_dir=FILE."
        ) from error
    content = "".join(topics[name] for name in sorted(topics))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return corpus.Text(content, f"pydoc_data.topics, {len(topics)} topics", digest)
