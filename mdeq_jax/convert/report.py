"""The reports that `convert_torch_weights.py` prints."""

import os

from mdeq_jax.convert.errors import printable
from mdeq_jax.convert.families import UNKNOWN, describe
from mdeq_jax.convert.state_dict import Conversion, not_finite
from mdeq_jax.convert.torch_file.unpickle import read_state_dict


def inspect_file(path: str | os.PathLike, key: str | None = None) -> str:
    """Lists every key of a weights file with its shape and type, and the network it belongs to.

    Args:
        path: of the file.
        key: the entry of the file with the state dict; see `read_state_dict`.

    Raises:
        WeightsFileError: the file cannot be read.
    """
    state_dict, taken = read_state_dict(path, key)
    names = [printable(name) for name in state_dict]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}  {tensor.dtype}  {list(tensor.shape)}"
        for name, tensor in zip(names, state_dict.values())
    ]
    numbers = sum(tensor.size for tensor in state_dict.values())
    lines.append(f"{os.fspath(path)}: {len(state_dict):,} tensors of {numbers:,} numbers")
    named, found = describe(state_dict)
    if found is not None:
        lines.append(f"parameters: {found.parameters:,}")
    lines += [f"note: {note}" for note in [*taken, *named.notes]]
    lines += [f"not finite: {line}" for line in not_finite(state_dict)]
    lines += [f"not part of the network: {line}" for line in named.ignored]
    return "\n".join([*lines, f"recognised as: {UNKNOWN if found is None else found.text}"])


def summarize(conversion: Conversion) -> str:
    """Returns the summary of a conversion."""
    lines = [f"parameters: {conversion.parameters:,}"]
    lines += [f"note: {note}" for note in conversion.notes]
    lines += [f"ignored by name: {line}" for line in conversion.ignored]
    return "\n".join([*lines, f"recognised as: {conversion.recognised}"])
