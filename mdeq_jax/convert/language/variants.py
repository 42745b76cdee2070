"""The variants of the sequence models' state dicts, brought to one set of names.

`DataParallel` puts a prefix before every name. The first version of the repository saves its cell
several times: as an attribute of its solvers, and as copies without weight norm.
"""

from collections.abc import Mapping

import numpy as np

from mdeq_jax.convert.entries import Entry
from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.mdeq.variants import Named

_PREFIX = "module."
# What the cell's names begin with, and those of its copies in the first version.
TRANSFORMER_CELL = "func."
TRELLISNET_CELL = "trellisnet.func."
_COPIES = {
    TRANSFORMER_CELL: (
        "func_copy.",
        "deq.func.",
        "deq.func_copy.",
        "deqback.func.",
        "deqback.func_copy.",
    ),
    TRELLISNET_CELL: ("trellisnet.func_copy.", "trellisnet.deq.func.", "trellisnet.deq.func_copy."),
}
# The TrellisNet's loss has parameters that the original trains but does not save.
_LOSS_PREFIX = "criterion."
_SAME = 1e-5  # relative; a copy's kernel is made in float32 from the cell's g and v


def standard_names(state_dict: Mapping[str, np.ndarray], cell: str) -> Named:
    """Strips the prefix and sets copies of the cell aside.

    Args:
        state_dict: names to arrays.
        cell: what the names of the cell begin with.

    Raises:
        WeightsFileError: two entries have the same name once the prefix is off.
    """
    tensors, file_names, prefixed = {}, {}, 0
    for file_name, value in state_dict.items():
        name = file_name.removeprefix(_PREFIX)
        prefixed += name != file_name
        if name in tensors:
            raise WeightsFileError(
                f"{printable(file_names[name])} and {printable(file_name)} are the same tensor of "
                "two networks. Save the one to convert in a file of its own."
            )
        tensors[name], file_names[name] = np.asarray(value), file_name
    notes = [f"{prefixed} names begin with {_PREFIX!r}"] if prefixed else []
    ignored = []
    for prefix in _COPIES[cell]:
        ignored += _take_copies(tensors, cell, prefix)
    if ignored:
        notes.append("written by the first version, with copies of the cell")
    return Named(tensors, {name: file_names[name] for name in tensors}, ignored, notes)


def _take_copies(tensors: dict[str, np.ndarray], cell: str, prefix: str) -> list[str]:
    """Removes the copies of cell tensors under `prefix`; the line that reports it, if any."""
    difference, taken = 0.0, []
    for name in [name for name in tensors if name.startswith(prefix)]:
        original = effective(tensors, cell + name.removeprefix(prefix))
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


def effective(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """A tensor, or the kernel that its weight norm stands for; None if it is not there."""
    if name in tensors:
        return tensors[name].astype(np.float32)
    g, v = (tensors.get(f"{name}_{part}") for part in "gv")
    if g is None or v is None or v.ndim < 2 or g.size != v.shape[0]:
        return None
    g, v = g.astype(np.float32), v.astype(np.float32)
    norm = np.sqrt(np.sum(np.square(v), axis=tuple(range(1, v.ndim)), keepdims=True))
    return v * (g.reshape(norm.shape) / np.maximum(norm, np.finfo(np.float32).tiny))


def with_copies(state_dict: dict[str, np.ndarray], cell: str) -> dict[str, np.ndarray]:
    """The first version's TrellisNet names: the cell's copies stand where PyTorch puts them."""
    own = {n.removeprefix(cell): a for n, a in state_dict.items() if n.startswith(cell)}
    plain = {}  # without weight norm; there PyTorch has the weight before the bias
    for name in ("full_conv.weight", "full_conv.bias"):
        plain[name] = effective(own, name)
    func_copy, deq_func, deq_copy = _COPIES[cell]
    result = {}
    for name, array in state_dict.items():
        first_after_cell = name == "trellisnet.inject_conv.bias"
        if first_after_cell:
            result |= {func_copy + n: a for n, a in plain.items()}
        if name == "encoder.weight":
            result |= {deq_func + n: a for n, a in own.items()}
            result |= {deq_copy + n: a for n, a in plain.items()}
        result[name] = array
    return result


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
