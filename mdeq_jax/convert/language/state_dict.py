"""State dicts of the sequence models to Flax variables, and back."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mdeq_jax.convert.entries import Entry, find_misfit
from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.language.names import (
    INV_FREQ,
    projection_ties,
    transformer_constants,
    transformer_table,
    trellisnet_table,
)
from mdeq_jax.convert.language.variants import (
    TRANSFORMER_CELL,
    TRELLISNET_CELL,
    standard_names,
    with_copies,
)
from mdeq_jax.convert.mdeq.variants import Named

_CONSTANT_RTOL = 1e-5
# The TrellisNet's loss has parameters that the original trains but does not save.
_LOSS_PREFIX = "criterion."


class Names(NamedTuple):
    """How the files of a family are read and written.

    Attributes:
        section: field of `config.model` that describes the network.
        table: that section to the tensors.
        constants: that section to entries which hold no parameter.
        ties: that section to pairs of entries with one storage, which the table may not tie.
        cell: what the names of the cell begin with.
        restore: exported names to what the original's `load_state_dict` takes.
    """

    section: str
    table: Callable[..., list[Entry]]
    constants: Callable[..., dict[str, np.ndarray]]
    ties: Callable[..., list[tuple[str, str]]]
    cell: str
    restore: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


_TRANSFORMER = Names(
    "transformer",
    transformer_table,
    transformer_constants,
    projection_ties,
    TRANSFORMER_CELL,
    lambda names: names,
)
FAMILIES: dict[str, Names] = {
    "deq_transformer": _TRANSFORMER,
    "transformer": _TRANSFORMER,
    "deq_trellisnet": Names(
        "trellisnet",
        trellisnet_table,
        lambda model: {},
        lambda model: [],
        TRELLISNET_CELL,
        lambda names: with_copies(names, TRELLISNET_CELL),
    ),
}


class Imported(NamedTuple):
    """Variables of a state dict, and what there is to report.

    Attributes:
        variables: Flax variables.
        parameters: number of trainable parameters, tied ones once.
        notes: what the names show.
        ignored: one line for each group of entries that was left out by name.
    """

    variables: dict
    parameters: int
    notes: list[str]
    ignored: list[str]


def import_state_dict(
    state_dict: Mapping[str, np.ndarray], config, dtype: type = np.float32
) -> Imported:
    """The variables of an original sequence model.

    Args:
        state_dict: of `load_torch_file`.
        config: `model` is read.
        dtype: of the variables.

    Raises:
        WeightsFileError: lists every entry that is missing, unexpected, mis-shaped or differs from
            another that it is tied to.
    """
    names = FAMILIES[config.model.name]
    model = config.model[names.section]
    named, table = standard_names(state_dict, names.cell), names.table(model)
    notes = list(named.notes) + add_missing_loss(named.tensors, table)
    problems = _misfits(named, table)
    if not problems:
        problems = _different_ties(named.tensors, table, names.ties(model))
        problems += _different_constants(named.tensors, names.constants(model))
    if problems:
        raise WeightsFileError("\n".join(["The weights do not fit config.model.", *problems]))
    variables: dict = {}
    for entry in table:
        if entry.path is not None:
            weight = entry.rule.to_flax(named.tensors[entry.torch_name])
            _insert(variables, entry.path, np.array(weight, dtype, order="C"))
    ignored = list(named.ignored)
    if INV_FREQ in named.tensors:
        ignored.append(f"{INV_FREQ}: computed from d_model")
    return Imported(variables, count_parameters(table), notes, ignored)


def export_state_dict(variables: Mapping, config) -> dict[str, np.ndarray]:
    """The state dict of a sequence model: `import_state_dict` undone.

    Tied weights are written under each of their names, and a TrellisNet's with the first version's
    copies. The entries `criterion.*` of a TrellisNet belong to the original's loss.

    Raises:
        WeightsFileError: variables of another network; lists what differs.
    """
    names = FAMILIES[config.model.name]
    model = config.model[names.section]
    table, constants = names.table(model), names.constants(model)
    leaves: dict[tuple[str, ...], np.ndarray] = dict(_flatten(variables))
    paths = {entry.path for entry in table if entry.path is not None}
    wrong = [f"missing {'/'.join(path)}" for path in sorted(paths - leaves.keys())]
    wrong += [f"unexpected {'/'.join(path)}" for path in sorted(leaves.keys() - paths)]
    state_dict = {}
    for entry in table:
        if entry.path is None:
            state_dict[entry.torch_name] = constants[entry.torch_name]
        elif entry.path in leaves:
            weight = np.asarray(leaves[entry.path])
            needed = entry.rule.to_flax(np.empty(entry.shape, np.bool_)).shape
            if weight.shape != needed:
                wrong.append(f"{'/'.join(entry.path)} is {weight.shape}, required is {needed}")
                continue
            state_dict[entry.torch_name] = np.array(
                entry.rule.to_torch(weight), np.float32, order="C"
            )
    if wrong:
        raise WeightsFileError(
            "The variables are not those of build_model(config):\n  "
            + "\n  ".join(wrong)
            + "\nExport with the config that they were trained or converted with."
        )
    return names.restore(state_dict)


def count_parameters(table: list[Entry]) -> int:
    """Trainable parameters, tied ones once."""
    shapes = {entry.path: entry.shape for entry in table if entry.path is not None}
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _misfits(named: Named, table: list[Entry]) -> list[str]:
    misfit = find_misfit(named.tensors, table)
    unexpected = [printable(named.file_names.get(name, name)) for name in misfit.unexpected]
    lists = (
        ("missing (the network has them, the file does not)", misfit.missing),
        ("unexpected (the file has them, the network does not)", unexpected),
        ("mis-shaped", misfit.misshapen),
    )
    return [
        line
        for title, entries in lists
        if entries
        for line in (f"{len(entries)} {title}:", *(f"  {entry}" for entry in entries))
    ]


def add_missing_loss(tensors: dict[str, np.ndarray], table: list[Entry]) -> list[str]:
    """Puts zeros, their initial value, for the loss's parameters if all of them are missing."""
    own = [entry for entry in table if entry.torch_name.startswith(_LOSS_PREFIX)]
    if not own or any(entry.torch_name in tensors for entry in own):
        return []
    tensors |= {entry.torch_name: np.zeros(entry.shape, np.float32) for entry in own}
    return [
        f"{_LOSS_PREFIX}* is not in the file, because the original does not save it: set to zeros. "
        "Losses of rare words are wrong until it is trained."
    ]


def _different_ties(
    tensors: Mapping[str, np.ndarray], table: list[Entry], ties: list[tuple[str, str]]
) -> list[str]:
    """One line for each entry that differs from the one it is tied to."""
    first: dict[tuple[str, ...], str] = {}
    pairs = [
        (first.setdefault(entry.path, entry.torch_name), entry.torch_name)
        for entry in table
        if entry.path is not None
    ]
    lines = [
        f"  {name} is not {source}, to which it is tied"
        for source, name in dict.fromkeys(pairs + ties)
        if source != name and not np.array_equal(tensors[source], tensors[name])
    ]
    if lines:
        lines.append("Untie projections in the config (tie_projs), or repair the file.")
    return lines


def _different_constants(
    tensors: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray]
) -> list[str]:
    return [
        f"  {name} is not what the model computes"
        for name, value in constants.items()
        if name in tensors and not np.allclose(tensors[name], value, rtol=_CONSTANT_RTOL, atol=0)
    ]


def _insert(tree: dict, path: tuple[str, ...], leaf) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _flatten(tree: Mapping, path=()):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*path, key))
        else:
            yield (*path, key), value
