"""The model families whose PyTorch files can be converted, one row each."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mdeq_jax.convert.entries import Entry
from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.convert.mdeq.variants import Named, exported_name, standard_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class WeightNames(NamedTuple):
    """The PyTorch names of a family's tensors.

    Attributes:
        table: `config.model` to its entries, in PyTorch's order.
        standard_names: state dict to the same tensors under the names of the table.
        exported_name: `config.model` and a name of the table to the name in an exported file.
    """

    table: Callable[[Any], list[Entry]]
    standard_names: Callable[[Mapping[str, np.ndarray]], Named]
    exported_name: Callable[[Any, str], str]


_MDEQ = WeightNames(name_table, standard_names, exported_name)
WEIGHT_NAMES: dict[str, WeightNames] = {"mdeq_classifier": _MDEQ, "mdeq_segmenter": _MDEQ}


def weight_names(config: "ConfigDict") -> WeightNames:
    """Returns the row of `config.model.name`.

    Raises:
        WeightsFileError: files of this family cannot be converted.
    """
    name = config.model.name
    if name not in WEIGHT_NAMES:
        raise WeightsFileError(
            f"PyTorch files cannot be converted for model.name={name!r}, only for "
            f"{sorted(WEIGHT_NAMES)}."
        )
    return WEIGHT_NAMES[name]
