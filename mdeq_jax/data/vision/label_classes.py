"""The entry of a segmentation data set's class table."""

from typing import NamedTuple


class LabelClass(NamedTuple):
    """A label that may occur in a data set's label maps.

    Attributes:
        id: its value in the files.
        name: its name in the data set.
        color: RGB, 0..255, in which the data set draws it.
        category: the group of classes that it belongs to.
        ignored: true if it is neither trained nor evaluated.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    category: str
    ignored: bool = False


def evaluated(table: tuple[LabelClass, ...]) -> tuple[LabelClass, ...]:
    """Returns the classes that are trained. The index of a class is its train id."""
    return tuple(c for c in table if not c.ignored)


def train_ids(table: tuple[LabelClass, ...], ignore_label: int) -> dict[int, int]:
    """Returns {label id: train id}, with `ignore_label` for ignored classes."""
    trained = {c.id: train_id for train_id, c in enumerate(evaluated(table))}
    return {c.id: trained.get(c.id, ignore_label) for c in table}
