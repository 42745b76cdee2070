"""Names of the examples of a split."""

from pathlib import Path

from mdeq_jax.data import Split
from mdeq_jax.data.vision.disk_split import DiskSplit


def file_name(split: Split, index: int) -> str:
    """The name of an example; its number if it is of no file."""
    return example_name(split.reader[index].path) if isinstance(split, DiskSplit) else str(index)


def example_name(path: str) -> str:
    """The file name of an example, or the id that a prepared data set gives in parentheses."""
    return path.rpartition("(")[2].removesuffix(")") if path.endswith(")") else Path(path).name
