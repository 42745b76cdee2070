"""The variables of a model in one safetensors file, which no reader can be made to execute."""

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS_FILE = "model.safetensors"


def write_weights(path: Path, variables: dict, step: int) -> None:
    """Writes Flax variables; "params/stem/conv/kernel", for example, is the name of an array.

    Args:
        path: of the file.
        variables: {"params": ..., "batch_stats": ...}, on the host.
        step: training step that they are of.
    """
    arrays = {
        "/".join(names): np.ascontiguousarray(array)
        for names, array in flatten_dict(variables).items()
    }
    save_file(arrays, path, metadata={"step": str(step)})  # of two entries the order would vary


def read_weights(path: Path, like: dict) -> tuple[dict, int]:
    """The variables of a file, bit for bit as they were written, and their step.

    Args:
        path: of `write_weights`.
        like: Flax variables of the same structure, shapes and types.

    Raises:
        ValueError: it is no such file, or of another model; lists every array that differs.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {tuple(name.split("/")): file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    expected: dict[tuple[str, ...], Any] = flatten_dict(like)
    wrong = [f"{'/'.join(name)}: missing" for name in sorted(expected.keys() - arrays.keys())]
    wrong += [f"{'/'.join(name)}: unexpected" for name in sorted(arrays.keys() - expected.keys())]
    wrong += [
        f"{'/'.join(name)}: {arrays[name].dtype} {arrays[name].shape}, but the config needs "
        f"{np.dtype(expected[name].dtype)} {expected[name].shape}"
        for name in sorted(expected.keys() & arrays.keys())
        if (arrays[name].shape, arrays[name].dtype) != (expected[name].shape, expected[name].dtype)
    ]
    if wrong:
        raise ValueError(f"{path} does not fit its config:\n  " + "\n  ".join(wrong))
    # A model without statistics has an empty entry, which no array represents.
    return {name: {} for name in like} | unflatten_dict(arrays), int(metadata.get("step", 0))
