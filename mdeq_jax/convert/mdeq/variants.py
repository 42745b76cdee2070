"""Brings the variants of the original's state dicts to one set of names.

Wrappers add a prefix to every name. The segmentation wrapper also adds the loss's buffers. The
first version of the repository saves the cell four times. TorchDEQ calls the cell `full_stage`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.mdeq.names import CELL

TORCHDEQ_CELL = "full_stage."
# DataParallel's, the segmentation wrapper's and torch.compile's, in any order.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_LOSS_BUFFERS = ("loss.criterion.weight", "criterion.weight")
# First version: the cell as an attribute of the solver, and copies of both without weight norm.
_CELL_COPIES = ("deq.func.", "fullstage_copy.", "deq.func_copy.")
_SAME = 1e-5  # relative; a copy's kernel was computed in float32 from the cell's g and v


class Named(NamedTuple):
    """A state dict under the names of `name_table`.

    Attributes:
        tensors: name to array; an unknown tensor keeps its name.
        file_names: the same names to those in the file.
        ignored: one line for each group of entries that was ignored by name.
        notes: other conclusions from the names: prefixes, and the code that wrote the file.
    """

    tensors: dict[str, np.ndarray]
    file_names: dict[str, str]
    ignored: list[str]
    notes: list[str]


def standard_names(state_dict: Mapping[str, np.ndarray]) -> Named:
    """Strips prefixes, renames TorchDEQ's cell, and removes copies of the cell and loss buffers.

    Raises:
        WeightsFileError: two entries have the same name without their prefixes.
    """
    tensors, file_names, prefixes = {}, {}, {}
    for file_name, value in state_dict.items():
        prefix, name = split_prefix(file_name)
        if name.startswith(TORCHDEQ_CELL):
            name = CELL + name.removeprefix(TORCHDEQ_CELL)
        if name in tensors:
            raise WeightsFileError(
                f"{printable(file_names[name])} and {printable(file_name)} are the same tensor of "
                "two networks. Save the one to convert in a file of its own."
            )
        tensors[name], file_names[name] = np.asarray(value), file_name
        prefixes[prefix] = prefixes.get(prefix, 0) + 1

    notes = [f"{n} names begin with {prefix!r}" for prefix, n in prefixes.items() if prefix]
    if any(TORCHDEQ_CELL in file_name for file_name in state_dict):
        notes.append("the cell has TorchDEQ's name, full_stage")
    ignored = []
    for name in _LOSS_BUFFERS:
        if tensors.pop(name, None) is not None:
            ignored.append(f"{file_names[name]}: the loss's class weights")
    for prefix in _CELL_COPIES:
        ignored += _take_copies(tensors, prefix)
    if any(line.startswith(_CELL_COPIES) for line in ignored):
        notes.append("written by the first version, with copies of the cell")
    file_names = {name: file_names[name] for name in tensors}
    return Named(tensors, file_names, ignored, notes)


def split_prefix(name: str) -> tuple[str, str]:
    """Splits a name into the prefixes of its wrappers, and the rest."""
    rest = name
    left: set[str] = set(_PREFIXES)
    while found := next((p for p in left if rest.startswith(p)), None):
        rest = rest.removeprefix(found)
        left.remove(found)
    return name.removesuffix(rest), rest


def _take_copies(tensors: dict[str, np.ndarray], prefix: str) -> list[str]:
    """Removes the copies of cell tensors under `prefix`, and returns a line that reports them.

    Only tensors that the cell itself holds are removed. The list is empty if there are none.
    """
    difference, taken = 0.0, []
    for name in [name for name in tensors if name.startswith(prefix)]:
        original = _cell_tensor(tensors, CELL + name.removeprefix(prefix))
        if original is None or original.shape != tensors[name].shape:
            continue
        copy = tensors.pop(name).astype(np.float32)
        scale = max(float(np.abs(original).max(initial=0)), 1e-30)
        difference = max(difference, float(np.abs(copy - original).max(initial=0)) / scale)
        taken.append(name)
    if not taken:
        return []
    # The first version refreshes its copies in a forward pass: a file saved right after a
    # training step holds copies that are one step old.
    how = "equal to it" if difference <= _SAME else f"off by up to {difference:.1e} of its values"
    return [f"{prefix}*: {len(taken)} tensors, a copy of the cell, {how}"]


def _cell_tensor(tensors, name) -> np.ndarray | None:
    """A tensor of the cell, or the kernel that its weight norm stands for; None if not there."""
    if name in tensors:
        return tensors[name].astype(np.float32)
    g, v = (tensors.get(f"{name}_{part}") for part in "gv")
    if g is None or v is None or v.ndim != 4 or g.shape != (v.shape[0], 1, 1, 1):
        return None
    g, v = g.astype(np.float32), v.astype(np.float32)
    norm = np.sqrt(np.sum(np.square(v), axis=(1, 2, 3), keepdims=True))
    return v * (g / np.maximum(norm, np.finfo(np.float32).tiny))


def exported_name(model, name: str) -> str:
    """Returns the name of a tensor in an exported file: TorchDEQ's with `fuse_weight_norm`."""
    if model.fuse_weight_norm and name.startswith(CELL):
        return TORCHDEQ_CELL + name.removeprefix(CELL)
    return name
