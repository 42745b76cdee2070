"""Converts state dicts of the original code to Flax variables, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from mdeq_jax.convert.entries import Entry, Misfit, count_parameters, find_misfit, find_untied
from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.families import UNKNOWN, WeightNames, describe, weight_names
from mdeq_jax.convert.mdeq.variants import Named

if TYPE_CHECKING:
    from ml_collections import ConfigDict


_CONSTANT_RTOL = 1e-5


class Conversion(NamedTuple):
    """A converted state dict, and a report on it.

    Attributes:
        variables: Flax variables.
        parameters: number of trainable parameters.
        recognised: the known architectures that it fits.
        notes: conclusions from its names.
        ignored: one line for each group of entries that was ignored by name.
    """

    variables: dict
    parameters: int
    recognised: str
    notes: list[str]
    ignored: list[str]


def convert_state_dict(state_dict: Mapping[str, np.ndarray], config: "ConfigDict") -> dict:
    """Returns the Flax variables of an original network.

    It accepts bare state dicts and those of `DataParallel`, of the segmentation wrapper, of the
    first version of the repository and of TorchDEQ. TorchDEQ's fusion weight norm needs
    `config.model.fuse_weight_norm=True`. Of the sequence models it accepts both versions' names.
    Tied weights must be equal, and are stored once.

    Args:
        state_dict: from `load_torch_file`: names to arrays in PyTorch's layout.
        config: a config of `configs/`; `model` and `data.image_size` are read.

    Returns:
        {"params": ..., "batch_stats": ...} of `build_model(config)`, float32 numpy arrays.

    Raises:
        WeightsFileError: lists every missing, unexpected and mis-shaped key, and the
            architectures that the state dict fits.
    """
    return convert(state_dict, config).variables


def convert(
    state_dict: Mapping[str, np.ndarray], config: "ConfigDict", *, allow_nonfinite: bool = False
) -> Conversion:
    """Like `convert_state_dict`, but also returns a report.

    With `allow_nonfinite`, the report lists the tensors that are not finite in float32. Without it,
    they are an error.
    """
    with np.errstate(over="ignore"):  # reported by `not_finite`
        conversion = _convert(state_dict, config)
    bad = not_finite(state_dict)
    if not allow_nonfinite:
        _refuse_nonfinite(bad, "convert")
    return conversion._replace(notes=[*conversion.notes, *(f"not finite: {line}" for line in bad)])


def _refuse_nonfinite(bad: list[str], verb: str) -> None:
    if bad:
        raise WeightsFileError(
            "The weights are not finite in float32:\n  "
            + "\n  ".join(bad)
            + f"\nThe network would return NaN. Take another checkpoint, or {verb} this one "
            f"regardless with --allow_nonfinite (or allow_nonfinite=True)."
        )


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each tensor with numbers that are NaN, infinite or too large for float32."""
    lines = []
    for name, tensor in tensors.items():
        with np.errstate(over="ignore"):
            real = np.asarray(tensor) if np.iscomplexobj(tensor) else np.asarray(tensor, np.float32)
        finite = np.isfinite(real)
        if count := finite.size - int(np.count_nonzero(finite)):
            lines.append(f"{printable(name)}: {count:,} of {finite.size:,} numbers")
    return lines


def _convert(state_dict: Mapping[str, np.ndarray], config: "ConfigDict") -> Conversion:
    names = weight_names(config)
    named, table = names.standard_names(state_dict), names.table(config)
    notes = [*named.notes, *names.add_missing(named.tensors, table)]
    misfit = find_misfit(named.tensors, table)
    if misfit.count:
        raise WeightsFileError(_explain(misfit, named, config))
    _check_agreement(names, named.tensors, table, config)
    leaves, counters, ignored = {}, 0, list(named.ignored)
    constants = names.constants(config)
    for entry in table:
        if entry.path is None:
            if entry.torch_name in constants.keys() & named.tensors.keys():
                ignored.append(f"{entry.torch_name}: computed by the network")
            else:
                counters += entry.torch_name in named.tensors
            continue
        weight = entry.rule.to_flax(named.tensors[entry.torch_name])
        leaves[entry.path] = np.array(weight, np.float32, order="C")
    if counters:
        ignored.append(f"*.num_batches_tracked: {counters} counters that only PyTorch uses")
    for line in ignored:
        logging.info("Ignored %s", line)
    return Conversion(
        unflatten_dict(leaves),
        count_parameters(table),
        _recognised(names, named),
        notes,
        ignored,
    )


def _check_agreement(
    names: WeightNames,
    tensors: Mapping[str, np.ndarray],
    table: list[Entry],
    config: "ConfigDict",
) -> None:
    """Refuses tied tensors that differ, and constants that are not the network's."""
    lines = find_untied(tensors, table, names.ties(config))
    if lines:
        lines.append("Untie them in config.model, or repair the file.")
    lines += [
        f"{name} is not what the model computes"
        for name, value in names.constants(config).items()
        if name in tensors and not np.allclose(tensors[name], value, rtol=_CONSTANT_RTOL, atol=0)
    ]
    if lines:
        raise WeightsFileError("\n  ".join(["The weights do not fit config.model:", *lines]))


def export_state_dict(
    variables: Mapping, config: "ConfigDict", *, allow_nonfinite: bool = False
) -> dict[str, np.ndarray]:
    """Returns the state dict for the original's `load_state_dict`: inverts `convert_state_dict`.

    Args:
        variables: Flax variables of `build_model(config)`.
        config: a config of `configs/`; with `model.fuse_weight_norm` the names are TorchDEQ's.
        allow_nonfinite: export NaN and infinity too. Without it, they are an error.

    Returns:
        Names to float32 arrays, in PyTorch's order and layout. The counters `num_batches_tracked`
        are int64 zeros. Tied weights stand under each of their names, and a DEQ-TrellisNet's with
        the first version's copies. Released segmentation files have the prefix `model.`, because
        the original wraps the network in a module. The names here lack it.

    Raises:
        WeightsFileError: the variables are of another network, or not finite; lists the
            differences or the tensors.
    """
    with np.errstate(over="ignore"):  # reported by `not_finite`
        state_dict = _export(variables, config)
    if not allow_nonfinite:
        _refuse_nonfinite(not_finite(state_dict), "export")
    return state_dict


def _export(variables, config):
    names = weight_names(config)
    table, constants = names.table(config), names.constants(config)
    leaves: Any = flatten_dict(variables)
    paths = {entry.path for entry in table if entry.path is not None}
    wrong = [f"missing {'/'.join(path)}" for path in sorted(paths - leaves.keys())]
    wrong += [f"unexpected {'/'.join(path)}" for path in sorted(leaves.keys() - paths)]
    state_dict = {}
    for entry in table:
        name = names.exported_name(config.model, entry.torch_name)
        if entry.path is None:
            state_dict[name] = constants.get(entry.torch_name, np.zeros((), np.int64))
        elif entry.path in leaves:
            leaf = np.asarray(leaves[entry.path])
            needed = entry.rule.to_flax(np.empty(entry.shape, np.bool_)).shape
            if leaf.shape == needed:
                state_dict[name] = np.array(entry.rule.to_torch(leaf), np.float32, order="C")
            else:
                wrong.append(f"{'/'.join(entry.path)} is {leaf.shape}, but must be {needed}")
    if wrong:
        raise WeightsFileError(
            "The variables are not those of build_model(config):\n  "
            + "\n  ".join(wrong)
            + "\nExport with the config that they were trained or converted with."
        )
    return names.restore(state_dict)


def _explain(misfit: Misfit, named: Named, config: "ConfigDict") -> str:
    """Lists the entries that do not fit, and the architectures that the file does fit."""
    unexpected = [printable(named.file_names[name]) for name in misfit.unexpected]
    lists = (
        ("missing (the network has them, the file does not)", misfit.missing),
        ("unexpected (the file has them, the network does not)", unexpected),
        ("mis-shaped", misfit.misshapen),
    )
    lines = [f"The weights do not fit config.model: {misfit.count} entries differ."]
    for title, entries in lists:
        if entries:
            lines += [f"{len(entries)} {title}:", *(f"  {entry}" for entry in entries)]
    names = weight_names(config)
    if changes := names.remedy(config, named.tensors):
        lines.append(f"The file fits this config with {' '.join(changes)}")
    lines.append(f"Recognised as: {_recognised(names, named)}.")
    return "\n".join(lines)


def _recognised(names: WeightNames, named: Named) -> str:
    found = names.describe(named.tensors) or describe(named.tensors)[1]
    return UNKNOWN if found is None else found.text
