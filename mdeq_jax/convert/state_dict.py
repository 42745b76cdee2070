"""State dicts of the original to Flax variables, and back."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.mdeq.architectures import architecture_of, overrides, recognise
from mdeq_jax.convert.mdeq.names import CELL, Misfit, count_parameters, find_misfit, name_table
from mdeq_jax.convert.mdeq.variants import TORCHDEQ_CELL, Named, standard_names


class Conversion(NamedTuple):
    """A converted state dict, and what there is to say about it.

    Attributes:
        variables: Flax variables.
        parameters: number of trainable parameters.
        recognised: which known architectures it is of.
        notes: what its names tell.
        ignored: one line for each group of entries that was left out by name.
    """

    variables: dict
    parameters: int
    recognised: str
    notes: list[str]
    ignored: list[str]


def convert_state_dict(state_dict: Mapping[str, np.ndarray], config) -> dict:
    """The Flax variables of an original network.

    Understands bare state dicts and those of `DataParallel`, of the segmentation wrapper, of the
    first version of the repository and of TorchDEQ (whose fusion weight norm takes
    `config.model.fuse_weight_norm=True`).

    Args:
        state_dict: of `load_torch_file`: names to arrays in PyTorch's layout.
        config: a config of `configs/`; `model` is read.

    Returns:
        {"params": ..., "batch_stats": ...} of `build_model(config)`, float32 numpy arrays.

    Raises:
        WeightsFileError: lists every missing, unexpected and mis-shaped key, and says what the
            state dict does fit.
    """
    return convert(state_dict, config).variables


def convert(state_dict: Mapping[str, np.ndarray], config) -> Conversion:
    """`convert_state_dict`, with a report. Arguments and errors as there."""
    named = standard_names(state_dict)
    table = name_table(config.model)
    misfit = find_misfit(named.tensors, table)
    if misfit.count:
        raise WeightsFileError(_explain(misfit, named, config))
    variables, counters = {}, 0
    for entry in table:
        if entry.path is None:
            counters += entry.torch_name in named.tensors
            continue
        weight = entry.rule.to_flax(named.tensors[entry.torch_name])
        _insert(variables, entry.path, np.array(weight, np.float32, order="C"))
    ignored = list(named.ignored)
    if counters:
        ignored.append(f"*.num_batches_tracked: {counters} counters that only PyTorch has")
    for line in ignored:
        logging.info("Ignored %s", line)
    return Conversion(
        variables,
        count_parameters(table),
        recognise(named.tensors).text,
        named.notes,
        ignored,
    )


def export_state_dict(variables: Mapping, config) -> dict[str, np.ndarray]:
    """The state dict that the original's `load_state_dict` takes: `convert_state_dict` undone.

    Args:
        variables: Flax variables of `build_model(config)`.
        config: as there; with `model.fuse_weight_norm` the names are TorchDEQ's.

    Returns:
        Names to float32 arrays, in PyTorch's order and layout; the counters `num_batches_tracked`,
        int64, are 0. The names are the network's own: the prefix `model.`, which released
        segmentation files have, comes from the module that the original wraps it in.

    Raises:
        WeightsFileError: variables of another network; lists what differs.
    """
    table = name_table(config.model)
    leaves = dict(_flatten(variables))
    paths = {entry.path for entry in table if entry.path is not None}
    wrong = [f"missing {'/'.join(path)}" for path in sorted(paths - leaves.keys())]
    wrong += [f"unexpected {'/'.join(path)}" for path in sorted(leaves.keys() - paths)]
    state_dict = {}
    for entry in table:
        name = entry.torch_name
        if config.model.fuse_weight_norm and name.startswith(CELL):
            name = TORCHDEQ_CELL + name.removeprefix(CELL)
        if entry.path is None:
            state_dict[name] = np.zeros((), np.int64)
        elif entry.path in leaves:
            leaf = np.asarray(leaves[entry.path])
            needed = entry.rule.to_flax(np.empty(entry.shape, np.bool_)).shape
            if leaf.shape == needed:
                state_dict[name] = np.array(entry.rule.to_torch(leaf), np.float32, order="C")
            else:
                wrong.append(f"{'/'.join(entry.path)} is {leaf.shape}, required is {needed}")
    if wrong:
        raise WeightsFileError(
            "The variables are not those of build_model(config):\n  "
            + "\n  ".join(wrong)
            + "\nExport with the config that they were trained or converted with."
        )
    return state_dict


def _explain(misfit: Misfit, named: Named, config) -> str:
    """Every entry that does not fit, and what the file does fit."""
    unexpected = [printable(named.file_names[name]) for name in misfit.unexpected]
    lists = (
        ("missing (the network has them, the file has not)", misfit.missing),
        ("unexpected (the file has them, the network has not)", unexpected),
        ("mis-shaped", misfit.misshapen),
    )
    lines = [f"The weights do not fit config.model: {misfit.count} entries differ."]
    for title, entries in lists:
        if entries:
            lines += [f"{len(entries)} {title}:", *(f"  {entry}" for entry in entries)]
    recognised = recognise(named.tensors)
    if recognised.architecture is not None and not recognised.misfit.count:
        changes = overrides(architecture_of(config.model), recognised.architecture)
        if changes:
            lines.append(f"The file fits this config with {' '.join(changes)}")
    lines.append(f"Recognised as: {recognised.text}.")
    return "\n".join(lines)


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
