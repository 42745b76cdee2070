"""Reads PyTorch weight files as numpy arrays, without torch and without running their code.

It reads both forms that `torch.save` writes: the zip of PyTorch 1.6 and later (`zip_format.py`)
and the older stream of pickles (`legacy_format.py`). `torch/serialization.py` defines them. It also
reads safetensors (`containers.py`).
"""

import os
import reprlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.torch_file import containers, legacy_format, zip_format

# A pickle of a kilobyte can unfold to an endless tree, by holding the same list many times.
_MAX_TREE_NODES = 300_000
_MAX_TREE_DEPTH = 50
_PLAIN_TYPES = {str, int, float, bool, bytes, type(None), np.ndarray}
_CONTAINERS = {dict, OrderedDict, list, tuple, set}
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict")
_MAX_KEY_DEPTH = 3  # of a state dict in a checkpoint


class StateDict(NamedTuple):
    """The state dict of a file.

    Attributes:
        tensors: name to array.
        notes: which entry of the file it is, and which others hold tensors.
    """

    tensors: dict[str, np.ndarray]
    notes: list[str]


def load_torch_file(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """Reads the state dict of a PyTorch or safetensors file; see `read_state_dict`."""
    return read_state_dict(path, key).tensors


def read_state_dict(path: str | os.PathLike, key: str | None = None) -> StateDict:
    """Reads the state dict of a PyTorch or safetensors file.

    The file holds either the state dict itself or a checkpoint with one under `state_dict`,
    `model` or `model_state_dict`. Other entries of a checkpoint (epoch, optimizer) are ignored;
    those that hold tensors are noted. Names are unchanged, prefixes included. Files that could run
    code are refused.

    Args:
        path: of the file.
        key: the entry with the state dict, e.g. "model_ema", or "ema.module" for an entry of an
            entry.

    Returns:
        The state dict, in the order of the file and in PyTorch's layout (convolutions
        `[out, in, kh, kw]`). Types are those of the file: float16, bfloat16 (from `ml_dtypes`),
        float32, float64, int8 to int64, uint8 or bool. Tensors that shared memory share it here.

    Raises:
        WeightsFileError: the file cannot be read, is damaged or is refused. It holds no state dict
            under `key`, none or two without one, or a state dict with entries that are not tensors
            (all of them are listed).
    """
    saved = load_torch_object(path)
    try:
        found, notes = _find_state_dict(saved, key)
        return StateDict(_checked_state_dict(found), notes)
    except WeightsFileError as error:
        raise WeightsFileError(f"{os.fspath(path)}: {error}") from None


def load_torch_object(path: str | os.PathLike) -> object:
    """Reads the whole object in a PyTorch or safetensors file, with arrays for tensors.

    Args:
        path: of the file.

    Returns:
        A tree of dicts, lists, tuples and sets of numpy arrays, numbers, strings, bytes and None.
        It is at most 50 levels deep and has no cycles, so a recursion over it ends. Parameters are
        arrays, a `torch.Size` is a tuple, and the attributes of an OrderedDict are dropped.

    Raises:
        WeightsFileError: the file cannot be read, is damaged, or names a global that is not
            allowed.
    """
    containers.refuse_folder(path)
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise WeightsFileError(f"{path}: no such file")
    try:
        with open(path, "rb", buffering=0) as file:
            saved = _read(file)
        _check_tree(saved)
    except WeightsFileError as error:
        raise WeightsFileError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise WeightsFileError(
            f"{path}: cannot be read ({error}). Check its permissions, or download it again: a "
            "damaged zip points outside itself."
        ) from error
    except Exception as error:
        # On damaged bytes the standard library's parsers raise many errors: ValueError,
        # struct.error, BadZipFile, NotImplementedError, OverflowError, ...
        raise WeightsFileError(
            f"{path}: damaged, cut short, or not a torch.save file "
            f"({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error
    return saved


def _read(file):
    file_size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    file.seek(0)
    if head.startswith(zip_format.SIGNATURE):
        return zip_format.read_zip(file, file_size)
    if containers.is_safetensors(head, file_size):
        return containers.read_safetensors(file.readall())
    containers.refuse_other_formats(head)
    return legacy_format.read_legacy(file, file_size)


def _check_tree(root):
    """Refuses a tree that is too large, or that holds other objects than data."""
    nodes, pending = 1, [(root, 0)]
    while pending:
        node, depth = pending.pop()
        if type(node) in _PLAIN_TYPES:
            continue
        if type(node) not in _CONTAINERS:
            raise WeightsFileError(
                f"the file holds a bare {type(node).__name__}, which is neither data nor a tensor"
            )
        nodes += len(node)
        if depth == _MAX_TREE_DEPTH or nodes > _MAX_TREE_NODES:
            raise WeightsFileError(
                f"the object in the file is nested deeper than {_MAX_TREE_DEPTH} levels or unfolds "
                f"to more than {_MAX_TREE_NODES:,} values, which no network does"
            )
        children = node.values() if isinstance(node, dict) else node
        pending.extend((child, depth + 1) for child in children)


def _holds_tensors(value):
    return isinstance(value, dict) and any(isinstance(v, np.ndarray) for v in value.values())


def _find_state_dict(saved, key: str | None) -> tuple[dict, list[str]]:
    """The state dict of a saved object, and notes on the choice."""
    if not isinstance(saved, dict):
        raise WeightsFileError(
            f"the file holds a {type(saved).__name__}, not a state dict. Save `model.state_dict()`."
        )
    sets = dict(_tensor_sets(saved))
    choices = " or ".join(f"--key={printable(name)}" for name in sets if name)
    if key is not None:
        if key not in sets:
            raise WeightsFileError(
                f"no state dict under the key {key!r}. "
                + (f"There is one with {choices}." if choices else "No entry holds tensors.")
            )
        return sets[key], _notes(key, sets)
    nested = [name for name in _STATE_DICT_KEYS if name in sets]
    if len(nested) > 1:
        raise WeightsFileError(
            f"the file holds a state dict under each of {', '.join(nested)}: choose one with "
            f"{choices} (or load_torch_file(path, key=...))"
        )
    if nested:
        return sets[nested[0]], _notes(nested[0], sets)
    if "" in sets:
        return saved, _notes("", sets)
    held = f" Other entries hold tensors: choose one with {choices}." if choices else ""
    raise WeightsFileError(
        f"no state dict in the file: neither its top level nor an entry "
        f"{' or '.join(_STATE_DICT_KEYS)} holds tensors. Its top level has the keys "
        f"{_listed(saved)}.{held}"
    )


def _tensor_sets(saved: dict, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, dict]]:
    """Yields the dicts that hold tensors, each with its key; "" is the top level."""
    if _holds_tensors(saved):
        yield prefix, saved
    for name, value in saved.items():
        if isinstance(value, dict) and isinstance(name, str) and depth < _MAX_KEY_DEPTH:
            yield from _tensor_sets(value, f"{prefix}.{name}" if prefix else name, depth + 1)


def _notes(taken: str, sets: dict[str, dict]) -> list[str]:
    """Which entry was taken, if there was a choice."""
    others = [
        f"{printable(name)} ({sum(isinstance(v, np.ndarray) for v in tensors.values()):,})"
        for name, tensors in sets.items()
        if name != taken and not (taken and name.startswith(f"{taken}."))
    ]
    if not others:
        return []
    return [
        f"took the tensors under {printable(taken) or 'the top level'}; the file holds others "
        f"under {', '.join(other or 'the top level' for other in others)}: --key chooses"
    ]


def _checked_state_dict(state_dict):
    wrong = [
        f"{reprlib.repr(name)} ({type(value).__name__})"
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if wrong:
        raise WeightsFileError(
            f"entries of the state dict that are not named tensors: {', '.join(wrong)}. "
            "Save `model.state_dict()` alone."
        )
    return dict(state_dict)


def _listed(names):
    return ", ".join(map(reprlib.repr, names)) or "(none)"
