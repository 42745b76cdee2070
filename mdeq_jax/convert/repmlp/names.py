"""The released RepMLP-ResNets and RepMLPNets: one table of names for both directions.

An entry has the tensor's name and shape in PyTorch, its path in the
Flax variables and the change of layout. The order is PyTorch's, in both forms of a network.
"""

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
from einops import rearrange

from mdeq_jax.convert.entries import (
    VECTOR,
    Entry,
    Rule,
    batch_norm_entries,
    conv_entries,
    linear_entries,
)
from mdeq_jax.convert.errors import WeightsFileError, printable
from mdeq_jax.convert.mdeq.variants import Named, split_prefix
from mdeq_jax.models.repmlp.resnet import REPMLP_STAGES

Path = tuple[str, ...]
POINTWISE = Rule(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])


def resnet_table(config) -> list[Entry]:
    """The tensors of a `repmlp_resnet`.

    Args:
        config: `model` and `data.image_size` are read.
    """
    model = config.model
    stem, *widths = model.channels
    entries = [*_conv_norm("stage0.0", ("backbone", "stem"), (stem, 3, 7), model.deployed)]
    c_in = stem
    height, width = (-(-n // 4) for n in config.data.image_size)
    for stage, (depth, features) in enumerate(zip(model.num_blocks, widths), start=1):
        if stage > 1:
            height, width = -(-height // 2), -(-width // 2)
        for j in range(depth):
            name, path = f"stage{stage}.{j}", ("backbone", f"stage{stage}_{j}")
            kind = model.block if stage in REPMLP_STAGES and j else "base"
            entries += block_entries(
                name,
                path,
                model,
                kind,
                (c_in, features),
                (height, width),
                hidden=features // (8 if kind == "light" else 4),
                narrow=model.bottleneck_reduction[stage - 2] if kind == "bottleneck" else 1,
                strided=stage > 1 and j == 0,
            )
            c_in = features
    return [*entries, *linear_entries("linear", ("linear",), model.num_classes, c_in)]


def block_entries(
    name, path, model, kind, channels, size, *, hidden, narrow=1, strided=False
) -> list[Entry]:
    """A residual block of a RepMLP-ResNet.

    Args:
        name: prefix of the names, or "".
        path: prefix of the paths.
        model: `partition`, `kernels`, `groups`, `global_reduction` and `deployed` are read.
        kind: "base", "light" or "bottleneck".
        channels: of input and output.
        size: height and width of the map.
        hidden: channels within.
        narrow: how much narrower a bottleneck's RepMLP is.
        strided: whether the stride is 2.
    """
    c_in, c_out = channels

    def conv(torch_name, flax_name, shape):
        full = f"{name}.{torch_name}".lstrip(".")
        return _conv_norm(full, (*path, flax_name), shape, model.deployed)

    def repmlp(torch_name, features):
        full = f"{name}.{torch_name}".lstrip(".")
        return repmlp_entries(full, (*path, "repmlp"), model, (features, features), size)

    entries = []
    if strided or c_in != c_out:
        entries += conv("shortcut", "shortcut", (c_out, c_in, 1))
    if kind == "base":
        entries += conv("conv1", "conv1", (hidden, c_in, 1))
        entries += conv("conv2", "conv2", (hidden, hidden, 3))
        return [*entries, *conv("conv3", "conv3", (c_out, hidden, 1))]
    if kind == "light":
        entries += conv("light_conv1", "conv1", (hidden, c_in, 1))
        entries += repmlp("light_repmlp", hidden)
        return [*entries, *conv("light_conv3", "conv3", (c_out, hidden, 1))]
    entries += conv("btnk_conv1", "conv1", (hidden, c_in, 1))
    entries += conv("btnk_conv2", "conv2", (hidden // narrow, hidden, 3))
    entries += repmlp("btnk_repmlp", hidden // narrow)
    entries += conv("btnk_conv4", "conv4", (hidden, hidden // narrow, 3))
    return [*entries, *conv("btnk_conv5", "conv5", (c_out, hidden, 1))]


def repmlp_entries(name: str, path: Path, model, channels, size) -> Iterator[Entry]:
    """A RepMLP module; arguments as of `block_entries`."""
    (h, w), groups, (c_in, c_out) = model.partition, model.groups, channels
    prefix = f"{name}." if name else ""
    partitions = (size[0] // h) * (size[1] // w)
    if partitions > 1:
        where, width = (*path, "global_perceptron"), c_in * partitions
        hidden = width // model.global_reduction
        yield from linear_entries(f"{prefix}fc1_fc2.fc1", (*where, "fc1"), hidden, width)
        yield from linear_entries(f"{prefix}fc1_fc2.fc2", (*where, "fc2"), width, hidden)
        if not model.deployed:
            yield from batch_norm_entries(f"{prefix}avg.bn", (*where, "norm"), c_in)

    kernel_path, features = ("params", *path, "fc3", "kernel"), h * w * c_out
    shape = (features, h * w * c_in // groups, 1, 1)
    yield Entry(f"{prefix}fc3.weight", shape, kernel_path, _fc3_rule(groups, h, w))
    if model.deployed:
        rule = Rule(
            lambda v: rearrange(v, "(g o h w) -> g (h w o)", g=groups, h=h, w=w),
            lambda v: rearrange(v, "g (h w o) -> (g o h w)", h=h, w=w),
        )
        yield Entry(f"{prefix}fc3.bias", (features,), ("params", *path, "fc3", "bias"), rule)
        return
    rule = Rule(
        lambda v: rearrange(v, "(o h w) -> (h w o)", h=h, w=w),
        lambda v: rearrange(v, "(h w o) -> (o h w)", h=h, w=w),
    )
    yield from batch_norm_entries(f"{prefix}fc3_bn", (*path, "fc3_norm"), features, rule=rule)
    for k in model.kernels:
        where = (*path, f"repconv{k}")
        yield from _conv_norm(f"{prefix}repconv{k}", where, (c_out, c_in // groups, k), False)


def _fc3_rule(groups: int, h: int, w: int) -> Rule:
    """A grouped 1x1 convolution over vectors (channel, row, column) to (row, column, channel)."""
    return Rule(
        lambda a: rearrange(
            a, "(g o h w) (c i j) 1 1 -> g (i j c) (h w o)", g=groups, h=h, w=w, i=h, j=w
        ),
        lambda a: rearrange(a, "g (i j c) (h w o) -> (g o h w) (c i j) 1 1", h=h, w=w, i=h, j=w),
    )


def repmlpnet_table(config) -> list[Entry]:
    """The tensors of a `repmlpnet`.

    Args:
        config: `model` is read.
    """
    model = config.model
    shape = (model.channels[0], 3, model.patch_size)
    entries = [*_conv_norm("conv_embedding", ("backbone", "embed"), shape, False)]
    for i, depth in enumerate(model.num_blocks):
        for j in range(depth):
            entries += _unit(f"stages.{i}.{j}", ("backbone", f"stage{i}_{j}"), model, i)
    for i, shape in enumerate(zip(model.channels[1:], model.channels)):
        entries += _conv_norm(f"embeds.{i}", ("backbone", f"embed{i}"), (*shape, 2), False)
    channels = model.channels[-1]
    entries += batch_norm_entries("head_norm", ("head_norm",), channels)
    return [*entries, *linear_entries("head", ("linear",), model.num_classes, channels)]


def _unit(name: str, path: Path, model, stage: int) -> Iterator[Entry]:
    channels = model.channels[stage]
    hidden = channels * model.ffn_expansion
    side = model.partitions[stage]
    yield from repmlp_block_entries(
        f"{name}.repmlp_block.",
        (*path, "repmlp"),
        model,
        channels,
        model.sharesets[stage],
        (side, side),
    )
    for number, shape in (("1", (hidden, channels, 1)), ("2", (channels, hidden, 1))):
        where = (*path, "ffn", f"fc{number}")
        yield from _conv_norm(f"{name}.ffn_block.ffn_fc{number}", where, shape, False)
    for number in ("1", "2"):
        yield from batch_norm_entries(f"{name}.prebn{number}", (*path, f"norm{number}"), channels)


def repmlp_block_entries(
    prefix: str, path: Path, model, channels: int, sharesets: int, partition: tuple[int, int]
) -> Iterator[Entry]:
    """A RepMLP block; of `model`, `gate_reduction`, `kernels` and `deployed` are read."""
    hidden, pixels = channels // model.gate_reduction, prod(partition)
    for layer, (c_out, c_in) in (("fc1", (hidden, channels)), ("fc2", (channels, hidden))):
        where = ("params", *path, "gate", layer)
        yield Entry(
            f"{prefix}gp.{layer}.weight", (c_out, c_in, 1, 1), (*where, "kernel"), POINTWISE
        )
        yield Entry(f"{prefix}gp.{layer}.bias", (c_out,), (*where, "bias"), VECTOR)
    where = ("params", *path, "fc3")
    rule = Rule(
        lambda a: rearrange(a, "(s o) i 1 1 -> s i o", s=sharesets),
        lambda a: rearrange(a, "s i o -> (s o) i 1 1"),
    )
    shape = (sharesets * pixels, pixels, 1, 1)
    yield Entry(f"{prefix}fc3.weight", shape, (*where, "kernel"), rule)
    if model.deployed:
        rule = Rule(lambda v: v.reshape(sharesets, pixels), lambda v: v.reshape(-1))
        yield Entry(f"{prefix}fc3.bias", shape[:1], (*where, "bias"), rule)
        return
    yield from batch_norm_entries(f"{prefix}fc3_bn", (*path, "fc3_norm"), sharesets)
    for k in model.kernels:
        name, where = f"{prefix}repconv{k}", (*path, f"repconv{k}")
        yield from conv_entries(f"{name}.conv", where, (sharesets, 1, k))
        yield from batch_norm_entries(f"{name}.bn", (*where, "norm"), sharesets)


def _conv_norm(name: str, path: Path, shape, merged: bool) -> Iterator[Entry]:
    """A convolution of shape (out, in, size) and its batch norm, or its bias if `merged`."""
    yield from conv_entries(f"{name}.conv", (*path, "conv"), shape, bias=merged)
    if not merged:
        yield from batch_norm_entries(f"{name}.bn", (*path, "norm"), shape[0])


def standard_names(state_dict: Mapping[str, np.ndarray]) -> Named:
    """Strips the prefixes that wrappers put before every name.

    Raises:
        WeightsFileError: two entries have the same name without the prefixes.
    """
    tensors, file_names, prefixes = {}, {}, {}
    for file_name, value in state_dict.items():
        prefix, name = split_prefix(file_name)
        if name in tensors:
            raise WeightsFileError(
                f"{printable(file_names[name])} and {printable(file_name)} are the same tensor of "
                "two networks. Save the one to convert in a file of its own."
            )
        tensors[name], file_names[name] = np.asarray(value), file_name
        prefixes[prefix] = prefixes.get(prefix, 0) + 1
    notes = [f"{n} names begin with {prefix!r}" for prefix, n in prefixes.items() if prefix]
    return Named(tensors, file_names, [], notes)
