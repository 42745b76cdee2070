"""One table of the original's parameter names and this project's, for both directions.

`name_table` lists the tensors of a PyTorch state dict in their order. An entry has the tensor's
name and shape in PyTorch, its path in the Flax variables and the change of layout. Importing,
exporting, checking and recognising a file all use this table.
"""

from collections.abc import Iterator
from itertools import pairwise

from mdeq_jax.convert.entries import (
    Entry,
    batch_norm_entries,
    conv_entries,
    group_norm_entries,
    linear_entries,
)
from mdeq_jax.models.mdeq.heads import BOTTLENECK_EXPANSION

CELL = "fullstage."  # prefix of the names in the equilibrium cell


def name_table(model) -> list[Entry]:
    """Returns the tensors of a model, in PyTorch's order.

    Args:
        model: `config.model`, or an `Architecture`.
    """
    return [*_stem(model), *_cell(model), *_HEADS[model.name](model)]


def _conv_bn(conv, norm, path, shape, bias=False) -> Iterator[Entry]:
    yield from conv_entries(conv, (*path, "conv"), shape, bias=bias)
    yield from batch_norm_entries(norm, (*path, "norm"), shape[0])


def _stem(model) -> Iterator[Entry]:
    width = model.channels[0]
    for i in range(max(2, model.downsample_times)):
        names = (f"DS{i + 1}", f"DS{i + 1}-BN") if i >= 2 else (str(3 * i), str(3 * i + 1))
        conv, norm = (f"downsample.{n}" for n in names)
        yield from _conv_bn(conv, norm, ("stem", f"conv{i}"), (width, 3 if i == 0 else width, 3))
    if model.downsample_times > 0 or len(model.channels) > 2:
        yield from _conv_bn("stage0.0", "stage0.1", ("stem", "injection"), (width, width, 1))


def _cell(model) -> Iterator[Entry]:
    for i, channels in enumerate(model.channels):
        for b in range(model.num_blocks[i]):
            name, path = f"{CELL}branches.{i}.blocks.{b}", ("cell", f"branch{i}_block{b}")
            yield from _block(name, path, channels, model.big_kernels[i], model)
    if len(model.channels) == 1:
        return
    for i, to_width in enumerate(model.channels):
        for j, from_width in enumerate(model.channels):
            name, layer = f"{CELL}fuse_layers.{i}.{j}.net", f"fuse{i}_{j}"
            if j > i:
                yield from _fusion(name, layer, (to_width, from_width, 1), model)
            for k in range(i - j):
                shape = (to_width if k == i - j - 1 else from_width, from_width, 3)
                yield from _fusion(f"{name}.{k}", f"{layer}_{k}", shape, model)
    for i, channels in enumerate(model.channels):
        name, path = f"{CELL}post_fuse_layers.{i}", ("cell", f"post{i}")
        shape = (channels, channels, 1)
        yield from conv_entries(
            f"{name}.conv", (*path, "conv"), shape, weight_norm=model.weight_norm
        )
        yield from group_norm_entries(
            f"{name}.gnorm", (*path, "norm"), channels, model.post_gn_affine
        )


def _block(name, path, channels, num_big, model) -> Iterator[Entry]:
    hidden = channels * model.expansion
    for n, (c_out, c_in) in enumerate(((hidden, channels), (channels, hidden)), start=1):
        shape = (c_out, c_in, 5 if n <= num_big else 3)
        yield from conv_entries(
            f"{name}.conv{n}", (*path, f"conv{n}"), shape, weight_norm=model.weight_norm
        )
        yield from group_norm_entries(
            f"{name}.gn{n}", (*path, f"norm{n}"), c_out, model.block_gn_affine
        )
    yield from group_norm_entries(f"{name}.gn3", (*path, "norm3"), channels, model.block_gn_affine)


def _fusion(name, layer, shape, model) -> Iterator[Entry]:
    path = ("cell", layer)
    yield from conv_entries(
        f"{name}.conv", (*path, "conv"), shape, weight_norm=model.fuse_weight_norm
    )
    yield from group_norm_entries(f"{name}.gnorm", (*path, "norm"), shape[0], model.fuse_gn_affine)


def _classification_head(model) -> Iterator[Entry]:
    raised = [BOTTLENECK_EXPANSION * width for width in model.head_channels]
    for i, (channels, width) in enumerate(zip(model.channels, model.head_channels)):
        name, path = f"incre_modules.{i}.0", ("head", f"bottleneck{i}")
        shapes = ((width, channels, 1), (width, width, 3), (raised[i], width, 1))
        for n, shape in enumerate(shapes, start=1):
            yield from conv_entries(f"{name}.conv{n}", (*path, f"conv{n}"), shape)
            yield from batch_norm_entries(
                f"{name}.bn{n}", (*path, f"norm{n}"), shape[0], affine=False
            )
        if channels != raised[i]:
            yield from conv_entries(
                f"{name}.downsample.0", (*path, "shortcut_conv"), (raised[i], channels, 1)
            )
            yield from batch_norm_entries(
                f"{name}.downsample.1", (*path, "shortcut_norm"), raised[i]
            )
    for i, (c_in, c_out) in enumerate(pairwise(raised)):
        name, shape = f"downsamp_modules.{i}", (c_out, c_in, 3)
        yield from _conv_bn(f"{name}.0", f"{name}.1", ("head", f"down{i}"), shape, bias=True)
    shape = (model.final_channels, raised[-1], 1)
    yield from _conv_bn("final_layer.0", "final_layer.1", ("head", "final"), shape, bias=True)
    path = ("head", "classifier")
    yield from linear_entries("classifier", path, model.num_classes, model.final_channels)


def _segmentation_head(model) -> Iterator[Entry]:
    width = sum(model.channels)
    yield from _conv_bn(
        "last_layer.0", "last_layer.1", ("head", "mix"), (width, width, 1), bias=True
    )
    shape = (model.num_classes, width, model.final_conv_kernel)
    yield from conv_entries("last_layer.3", ("head", "classifier"), shape, bias=True)


_HEADS = {"mdeq_classifier": _classification_head, "mdeq_segmenter": _segmentation_head}
