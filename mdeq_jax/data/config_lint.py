"""Settings of `config.data` that a run does not read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_TEXT = ("wikitext103", "enwik8", "text8", "text_file", "tfds_text", "pydoc")
_IN_MEMORY = ("digits", "cifar10", *_TEXT)


def unused_fields(config: "ConfigDict", *, training: bool) -> Iterator[tuple[list[str], str]]:
    """Yields fields, and the reason why they have no effect.

    Args:
        config: `config.data`.
        training: whether the training split is read.
    """
    if config.name == "digits":
        yield ["data.data_dir"], "data.name='digits' comes with scikit-learn"
    if config.name == "pydoc":
        yield ["data.data_dir"], "data.name='pydoc' comes with Python"
    if config.name in _TEXT:
        yield ["data.augment"], f"data.name={config.name!r} is text"
    if config.name in _IN_MEMORY:
        yield ["data.num_workers"], f"data.name={config.name!r} is held in memory"
    if training and not config.augment:
        yield ["data.base_size", "data.scale_factor"], "data.augment=False scales no image"
