"""The model families whose PyTorch files can be converted, one row each."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mdeq_jax.convert.entries import Entry, count_parameters
from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.language import recognise as language
from mdeq_jax.convert.language.names import (
    projection_ties,
    transformer_constants,
    transformer_table,
    trellisnet_table,
)
from mdeq_jax.convert.language.variants import (
    TRANSFORMER_CELL,
    TRELLISNET_CELL,
    add_missing_loss,
    with_copies,
)
from mdeq_jax.convert.language.variants import standard_names as language_names
from mdeq_jax.convert.mdeq import architectures
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.convert.mdeq.variants import Named, exported_name, standard_names
from mdeq_jax.convert.repmlp import recognise as repmlp
from mdeq_jax.convert.repmlp.names import repmlpnet_table, resnet_table
from mdeq_jax.convert.repmlp.names import standard_names as repmlp_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class WeightNames(NamedTuple):
    """The PyTorch names of a family's tensors.

    Attributes:
        table: config to its entries, in PyTorch's order.
        standard_names: state dict to the same tensors under the names of the table.
        exported_name: `config.model` and a name of the table to the name in an exported file.
        describe: tensors under those names to a description; None: of another family.
        remedy: config and tensors to the overrides with which they fit, if any do.
        constants: config to tensors that the network computes itself, by their names.
        ties: config to pairs of names with one storage, which the table need not tie.
        add_missing: puts initial values for what the original does not save into tensors, given a
            table; returns notes.
        restore: exported tensors to what the original's `load_state_dict` takes.
    """

    table: Callable[["ConfigDict"], list[Entry]]
    standard_names: Callable[[Mapping[str, np.ndarray]], Named]
    exported_name: Callable[[Any, str], str]
    describe: Callable[[Mapping[str, np.ndarray]], "Description | None"]
    remedy: Callable[["ConfigDict", Mapping[str, np.ndarray]], list[str]]
    constants: Callable[["ConfigDict"], dict[str, np.ndarray]] = lambda config: {}
    ties: Callable[["ConfigDict"], list[tuple[str, str]]] = lambda config: []
    add_missing: Callable[[dict[str, np.ndarray], list[Entry]], list[str]] = lambda *_: []
    restore: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda tensors: tensors


class Description(NamedTuple):
    """What a file is.

    Attributes:
        text: the configs that it fits, with the overrides that they need.
        parameters: number of trainable parameters.
    """

    text: str
    parameters: int


def _describe_mdeq(tensors: Mapping[str, np.ndarray]) -> Description | None:
    found = architectures.recognise(tensors)
    if found.architecture is None:
        return None
    return Description(found.text, count_parameters(name_table(found.architecture)))


def _describe_repmlp(tensors: Mapping[str, np.ndarray]) -> Description | None:
    found = repmlp.recognise(tensors)
    return None if found is None else Description(found.text, found.parameters)


_MDEQ = WeightNames(
    lambda config: name_table(config.model),
    standard_names,
    exported_name,
    _describe_mdeq,
    architectures.remedy,
)


def _repmlp(table) -> WeightNames:
    return WeightNames(
        table, repmlp_names, lambda model, name: name, _describe_repmlp, repmlp.remedy
    )


def _language(table, cell: str, recognise, **fields) -> WeightNames:
    def describe(tensors: Mapping[str, np.ndarray]) -> Description | None:
        found = recognise(tensors)
        return None if found is None else Description(found.text, found.parameters)

    return WeightNames(
        table,
        lambda state_dict: language_names(state_dict, cell),
        lambda model, name: name,
        describe,
        lambda config, tensors: language.remedy(config, recognise(tensors)),
        **fields,
    )


_TRANSFORMER = _language(
    lambda config: transformer_table(config.model.transformer),
    TRANSFORMER_CELL,
    language.recognise_transformer,
    constants=lambda config: transformer_constants(config.model.transformer),
    ties=lambda config: projection_ties(config.model.transformer),
)
_TRELLISNET = _language(
    lambda config: trellisnet_table(config.model.trellisnet),
    TRELLISNET_CELL,
    language.recognise_trellisnet,
    add_missing=add_missing_loss,
    restore=lambda tensors: with_copies(tensors, TRELLISNET_CELL),
)
WEIGHT_NAMES: dict[str, WeightNames] = {
    "mdeq_classifier": _MDEQ,
    "mdeq_segmenter": _MDEQ,
    "repmlp_resnet": _repmlp(resnet_table),
    "repmlpnet": _repmlp(repmlpnet_table),
    "deq_transformer": _TRANSFORMER,
    "transformer": _TRANSFORMER,
    "deq_trellisnet": _TRELLISNET,
}
UNKNOWN = "a network of no family here"


def describe(state_dict: Mapping[str, np.ndarray]) -> tuple[Named, Description | None]:
    """Finds the family of a state dict: its standard names, and the description."""
    for names in WEIGHT_NAMES.values():
        named = names.standard_names(state_dict)
        if found := names.describe(named.tensors):
            return named, found
    return standard_names(state_dict), None


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
