"""text8; see `mdeq_jax.data.text.large_text`."""

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.text import large_text


def load(config: ConfigDict) -> Dataset:
    """Returns text8; see `large_text.load`."""
    return large_text.load(config, "text8")
