"""The original's parameter names against ours, as one table that serves both directions.

`name_table` lists, in the order of a PyTorch state dict, each tensor's name there, its place in
the Flax variables and the rule that turns one layout into the other. Importing and exporting walk
the same table.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A change of layout and its inverse."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    torch_ndim: int


CONV = Rule(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1), 4)  # OIHW, HWIO
LINEAR = Rule(lambda w: w.T, lambda w: w.T, 2)
GAIN = Rule(lambda g: g.reshape(-1), lambda g: g.reshape(-1, 1, 1, 1), 4)  # weight norm's g
VECTOR = Rule(lambda v: v, lambda v: v, 1)


class Entry(NamedTuple):
    """One tensor.

    Attributes:
        torch_name: key in the state dict.
        path: keys in the Flax variables, collection first; None for a counter that only PyTorch
            has (`num_batches_tracked`).
        rule: change of layout.
    """

    torch_name: str
    path: tuple[str, ...] | None
    rule: Rule


def name_table(model) -> list[Entry]:
    """The tensors of a model, in PyTorch's order.

    Args:
        model: `config.model`.
    """
    entries = [*_stem(model), *_cell(model)]
    head = _segmentation_head if model.name == "mdeq_segmenter" else _classification_head
    return [*entries, *head(model)]


def _conv(name: str, path: tuple[str, ...], *, weight_norm=False, bias=False) -> Iterator[Entry]:
    if weight_norm:
        yield Entry(f"{name}.weight_g", ("params", *path, "g"), GAIN)
        yield Entry(f"{name}.weight_v", ("params", *path, "v"), CONV)
    else:
        yield Entry(f"{name}.weight", ("params", *path, "kernel"), CONV)
    if bias:
        yield Entry(f"{name}.bias", ("params", *path, "bias"), VECTOR)


def _group_norm(name: str, path: tuple[str, ...], affine: bool) -> Iterator[Entry]:
    if affine:
        yield Entry(f"{name}.weight", ("params", *path, "scale"), VECTOR)
        yield Entry(f"{name}.bias", ("params", *path, "bias"), VECTOR)


def _batch_norm(name: str, path: tuple[str, ...], affine: bool = True) -> Iterator[Entry]:
    yield from _group_norm(name, (*path, "affine"), affine)
    yield Entry(f"{name}.running_mean", ("batch_stats", *path, "mean"), VECTOR)
    yield Entry(f"{name}.running_var", ("batch_stats", *path, "var"), VECTOR)
    yield Entry(f"{name}.num_batches_tracked", None, VECTOR)


def _conv_bn(conv: str, norm: str, path: tuple[str, ...], bias=False) -> Iterator[Entry]:
    yield from _conv(conv, (*path, "conv"), bias=bias)
    yield from _batch_norm(norm, (*path, "norm"))


def _stem(model) -> Iterator[Entry]:
    for i in range(max(2, model.downsample_times)):
        names = (f"DS{i + 1}", f"DS{i + 1}-BN") if i >= 2 else (str(3 * i), str(3 * i + 1))
        yield from _conv_bn(*(f"downsample.{n}" for n in names), ("stem", f"conv{i}"))
    if model.downsample_times > 0 or len(model.channels) > 2:
        yield from _conv_bn("stage0.0", "stage0.1", ("stem", "injection"))


def _cell(model) -> Iterator[Entry]:
    scales = range(len(model.channels))
    for i in scales:
        for b in range(model.num_blocks[i]):
            name = f"fullstage.branches.{i}.blocks.{b}"
            path = ("cell", f"branch{i}_block{b}")
            for n in (1, 2):
                yield from _conv(
                    f"{name}.conv{n}", (*path, f"conv{n}"), weight_norm=model.weight_norm
                )
                yield from _group_norm(f"{name}.gn{n}", (*path, f"norm{n}"), model.block_gn_affine)
            yield from _group_norm(f"{name}.gn3", (*path, "norm3"), model.block_gn_affine)
    if len(scales) == 1:
        return
    for i in scales:
        for j in scales:
            name = f"fullstage.fuse_layers.{i}.{j}.net"
            if j > i:
                yield from _fusion(name, f"fuse{i}_{j}", model)
            for k in range(i - j):
                yield from _fusion(f"{name}.{k}", f"fuse{i}_{j}_{k}", model)
    for i in scales:
        name, path = f"fullstage.post_fuse_layers.{i}", ("cell", f"post{i}")
        yield from _conv(f"{name}.conv", (*path, "conv"), weight_norm=model.weight_norm)
        yield from _group_norm(f"{name}.gnorm", (*path, "norm"), model.post_gn_affine)


def _fusion(name: str, layer: str, model) -> Iterator[Entry]:
    yield from _conv(f"{name}.conv", ("cell", layer, "conv"), weight_norm=model.fuse_weight_norm)
    yield from _group_norm(f"{name}.gnorm", ("cell", layer, "norm"), model.fuse_gn_affine)


def _classification_head(model) -> Iterator[Entry]:
    for i, width in enumerate(model.head_channels):
        name, path = f"incre_modules.{i}.0", ("head", f"bottleneck{i}")
        for n in (1, 2, 3):
            yield from _conv(f"{name}.conv{n}", (*path, f"conv{n}"))
            yield from _batch_norm(f"{name}.bn{n}", (*path, f"norm{n}"), affine=False)
        if model.channels[i] != 4 * width:
            yield from _conv(f"{name}.downsample.0", (*path, "shortcut_conv"))
            yield from _batch_norm(f"{name}.downsample.1", (*path, "shortcut_norm"))
    for i in range(len(model.head_channels) - 1):
        name = f"downsamp_modules.{i}"
        yield from _conv_bn(f"{name}.0", f"{name}.1", ("head", f"down{i}"), bias=True)
    yield from _conv_bn("final_layer.0", "final_layer.1", ("head", "final"), bias=True)
    path = ("params", "head", "classifier")
    yield Entry("classifier.weight", (*path, "kernel"), LINEAR)
    yield Entry("classifier.bias", (*path, "bias"), VECTOR)


def _segmentation_head(model) -> Iterator[Entry]:
    yield from _conv_bn("last_layer.0", "last_layer.1", ("head", "mix"), bias=True)
    yield from _conv("last_layer.3", ("head", "classifier"), bias=True)
