"""The tensors of a PyTorch state dict, one entry each, and the comparison of a file with them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from einops import rearrange


class Rule(NamedTuple):
    """A change of layout and its inverse."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


CONV = Rule(
    lambda w: rearrange(w, "c_out c_in height width -> height width c_in c_out"),
    lambda w: rearrange(w, "height width c_in c_out -> c_out c_in height width"),
)
LINEAR = Rule(lambda w: w.T, lambda w: w.T)
GAIN = Rule(lambda g: g.reshape(-1), lambda g: g.reshape(-1, 1, 1, 1))  # weight norm's g
VECTOR = Rule(lambda v: v, lambda v: v)


class Entry(NamedTuple):
    """One tensor.

    Attributes:
        torch_name: key in the state dict.
        shape: in the state dict.
        path: keys in the Flax variables, collection first; None if no variable holds it, as of
            `num_batches_tracked`, which only PyTorch uses. Two entries with one path are tied: one
            parameter of PyTorch under two names.
        rule: change of layout.
    """

    torch_name: str
    shape: tuple[int, ...]
    path: tuple[str, ...] | None
    rule: Rule


def conv_entries(name, path, shape, *, weight_norm=False, bias=False) -> Iterator[Entry]:
    """A convolution of shape (out, in, size)."""
    c_out, c_in, size = shape
    shape = (c_out, c_in, size, size)
    if weight_norm:
        yield Entry(f"{name}.weight_g", (c_out, 1, 1, 1), ("params", *path, "g"), GAIN)
        yield Entry(f"{name}.weight_v", shape, ("params", *path, "v"), CONV)
    else:
        yield Entry(f"{name}.weight", shape, ("params", *path, "kernel"), CONV)
    if bias:
        yield Entry(f"{name}.bias", (c_out,), ("params", *path, "bias"), VECTOR)


def linear_entries(name, path, features, c_in) -> Iterator[Entry]:
    """A linear layer with a bias."""
    yield Entry(f"{name}.weight", (features, c_in), ("params", *path, "kernel"), LINEAR)
    yield Entry(f"{name}.bias", (features,), ("params", *path, "bias"), VECTOR)


def group_norm_entries(name, path, channels, affine, rule=VECTOR) -> Iterator[Entry]:
    """Scale and bias of a norm, if it is affine."""
    if affine:
        yield Entry(f"{name}.weight", (channels,), ("params", *path, "scale"), rule)
        yield Entry(f"{name}.bias", (channels,), ("params", *path, "bias"), rule)


def batch_norm_entries(name, path, channels, affine=True, rule=VECTOR) -> Iterator[Entry]:
    """A batch norm; `rule` is the change of order of its channels."""
    yield from group_norm_entries(name, (*path, "affine"), channels, affine, rule)
    yield Entry(f"{name}.running_mean", (channels,), ("batch_stats", *path, "mean"), rule)
    yield Entry(f"{name}.running_var", (channels,), ("batch_stats", *path, "var"), rule)
    yield Entry(f"{name}.num_batches_tracked", (), None, VECTOR)


def count_parameters(table: list[Entry]) -> int:
    """Returns the number of trainable parameters, without running statistics and counters.

    Tied ones count once.
    """
    shapes = {e.path: e.shape for e in table if e.path is not None and e.path[0] == "params"}
    return sum(int(np.prod(shape)) for shape in shapes.values())


def find_untied(
    tensors: Mapping[str, np.ndarray], table: list[Entry], ties: Iterable[tuple[str, str]] = ()
) -> list[str]:
    """Lists the tensors that differ from the one that they are tied to, one line each.

    Args:
        tensors: that fit the table.
        table: whose entries with one path are tied.
        ties: names of further pairs.
    """
    first: dict[tuple[str, ...], str] = {}
    pairs = [
        (first.setdefault(entry.path, entry.torch_name), entry.torch_name)
        for entry in table
        if entry.path is not None
    ]
    return [
        f"{name} is not {source}, to which it is tied"
        for source, name in dict.fromkeys([*pairs, *ties])
        if source != name and not np.array_equal(tensors[source], tensors[name])
    ]


class Misfit(NamedTuple):
    """How named tensors differ from a table, one line each; empty if they fit.

    Attributes:
        missing: names that are in the table but not among the tensors.
        unexpected: names that are among the tensors but not in the table.
        misshapen: names with both shapes (or with a type that no weight has).
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def count(self) -> int:
        """Number of tensors that do not fit."""
        return sum(map(len, self))


def find_misfit(tensors: Mapping[str, np.ndarray], table: list[Entry]) -> Misfit:
    """Compares named tensors with a table. PyTorch's counters may be absent."""
    missing, misshapen = [], []
    for entry in table:
        if entry.torch_name not in tensors:
            if entry.path is not None:
                missing.append(entry.torch_name)
            continue
        tensor = tensors[entry.torch_name]
        if tensor.shape != entry.shape:
            misshapen.append(
                f"{entry.torch_name}: {list(tensor.shape)} in the file, "
                f"{list(entry.shape)} in the network"
            )
        elif entry.path is not None and tensor.dtype.kind in "biuc":
            misshapen.append(f"{entry.torch_name}: {tensor.dtype} in the file, a weight is a float")
    known = {entry.torch_name for entry in table}
    return Misfit(missing, [name for name in tensors if name not in known], misshapen)
