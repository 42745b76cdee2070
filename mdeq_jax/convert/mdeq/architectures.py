"""Recognises the network of a file by its names and shapes; lists the released networks."""

from collections.abc import Iterable, Mapping
from itertools import count, takewhile
from typing import NamedTuple, TypeVar

import numpy as np

from mdeq_jax.convert.entries import Misfit, find_misfit
from mdeq_jax.convert.mdeq.names import CELL, name_table

Item = TypeVar("Item")
Shapes = Mapping[str, tuple[int, ...]]
_MAX_SCALES = 16  # more than any image can be halved; the table grows with their square


class Architecture(NamedTuple):
    """The fields of `config.model` that affect the names and shapes of a state dict.

    Other values are fixed, so that two networks with the same tensors are equal. These are
    `downsample_times` up to 2 with more than two scales (2), the fields of the other head (empty,
    0), and those of the fusion with a single scale (False).
    """

    name: str
    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    big_kernels: tuple[int, ...]
    expansion: int
    downsample_times: int
    weight_norm: bool
    fuse_weight_norm: bool
    block_gn_affine: bool
    fuse_gn_affine: bool
    post_gn_affine: bool
    num_classes: int
    head_channels: tuple[int, ...] = ()
    final_channels: int = 0
    final_conv_kernel: int = 0


# Fields in which files of one network may differ, and that a user may want to override.
FLAGS = (
    "weight_norm",
    "fuse_weight_norm",
    "block_gn_affine",
    "fuse_gn_affine",
    "post_gn_affine",
    "num_classes",
)


def architecture_of(model) -> Architecture:
    """Returns the architecture of `config.model`."""
    fields = {field: model[field] for field in Architecture._fields}
    fields |= {k: tuple(v) for k, v in fields.items() if isinstance(v, list | tuple)}
    return _only_visible(Architecture(**fields))


def _only_visible(a: Architecture) -> Architecture:
    scales = len(a.channels)
    if 0 < a.downsample_times < 2 or (scales > 2 and a.downsample_times < 2):
        a = a._replace(downsample_times=2)
    if scales == 1:
        a = a._replace(fuse_weight_norm=False, fuse_gn_affine=False, post_gn_affine=False)
    if a.name == "mdeq_segmenter":
        return a._replace(head_channels=(), final_channels=0)
    return a._replace(final_conv_kernel=0)


def infer_architecture(shapes: Shapes) -> Architecture | None:
    """Infers the architecture from the names (see `standard_names`) and shapes of a state dict.

    Returns:
        None if they are not an MDEQ's. Otherwise an architecture whose `name_table` the file fits,
        unless the file is incomplete.
    """
    branches = _until_none(_branch(shapes, i) for i in range(_MAX_SCALES + 1))
    head = _head(shapes)
    if not 1 <= len(branches) <= _MAX_SCALES or head is None:
        return None
    channels, num_blocks, big_kernels, expansions = zip(*branches)
    stages = 2
    while f"downsample.DS{stages + 1}.weight" in shapes:
        stages += 1
    if stages == 2 and len(branches) <= 2 and "stage0.0.weight" not in shapes:
        stages = 0
    return _only_visible(
        Architecture(
            channels=channels,
            num_blocks=num_blocks,
            big_kernels=big_kernels,
            expansion=expansions[0],
            downsample_times=stages,
            weight_norm=f"{CELL}branches.0.blocks.0.conv1.weight_g" in shapes,
            fuse_weight_norm=f"{CELL}fuse_layers.0.1.net.conv.weight_g" in shapes,
            block_gn_affine=f"{CELL}branches.0.blocks.0.gn1.weight" in shapes,
            fuse_gn_affine=f"{CELL}fuse_layers.0.1.net.gnorm.weight" in shapes,
            post_gn_affine=f"{CELL}post_fuse_layers.0.gnorm.weight" in shapes,
            **head,
        )
    )


def _until_none(items: Iterable[Item | None]) -> list[Item]:
    """Returns the items before the first None."""
    found = []
    for item in items:
        if item is None:
            break
        found.append(item)
    return found


def _kernel_shape(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    shape = shapes.get(f"{name}.weight_v", shapes.get(f"{name}.weight"))
    return shape if shape is not None and len(shape) == 4 and min(shape) > 0 else None


def _branch(shapes: Shapes, i: int) -> tuple[int, int, int, int] | None:
    """Returns width, blocks, 5x5 convolutions a block and expansion of resolution i, or None."""
    blocks = (f"{CELL}branches.{i}.blocks.{b}" for b in count())
    first = _until_none(_kernel_shape(shapes, f"{block}.conv1") for block in blocks)
    if not first:
        return None
    second = _kernel_shape(shapes, f"{CELL}branches.{i}.blocks.0.conv2")
    sizes = first[0][2], second[2] if second else 3
    num_big = len(list(takewhile(lambda size: size == 5, sizes)))
    hidden, channels = first[0][:2]
    return channels, len(first), num_big, hidden // channels


def _head(shapes: Shapes) -> dict | None:
    classes = shapes.get("classifier.weight")
    pixel_classes = _kernel_shape(shapes, "last_layer.3")
    if classes is not None and len(classes) == 2:
        kernels = (_kernel_shape(shapes, f"incre_modules.{i}.0.conv1") for i in count())
        widths = tuple(shape[0] for shape in _until_none(kernels))
        fields = dict(num_classes=classes[0], final_channels=classes[1], head_channels=widths)
        return dict(name="mdeq_classifier", **fields) if widths else None
    if pixel_classes is not None:
        fields = dict(num_classes=pixel_classes[0], final_conv_kernel=pixel_classes[2])
        return dict(name="mdeq_segmenter", **fields)
    return None


def _four_scales(width, expansion, num_classes, head_width=None, final_channels=2048, post=True):
    """A network of `width` channels, doubled at each of four scales; no `head_width`: pixels."""
    widths = [tuple(w << i for i in range(4)) for w in (width, head_width or 0)]
    segmenter = head_width is None
    return Architecture(
        name="mdeq_segmenter" if segmenter else "mdeq_classifier",
        channels=widths[0],
        num_blocks=(1,) * 4,
        big_kernels=(0,) * 4,
        expansion=expansion,
        downsample_times=2,
        weight_norm=True,
        fuse_weight_norm=False,
        block_gn_affine=True,
        fuse_gn_affine=True,
        post_gn_affine=post,
        num_classes=num_classes,
        head_channels=() if segmenter else widths[1],
        final_channels=0 if segmenter else final_channels,
        final_conv_kernel=1 if segmenter else 0,
    )


_TINY = _four_scales(24, 5, 10, 8, 200, post=False)._replace(
    channels=(24, 24),
    num_blocks=(1, 1),
    big_kernels=(0, 0),
    downsample_times=0,
    head_channels=(8, 16),
)
# File in configs/ -> name of the original's experiment, and its network.
KNOWN_ARCHITECTURES = {
    "cifar10_tiny": ("cifar/cls_mdeq_TINY", _TINY),
    "cifar10_large": ("cifar/cls_mdeq_LARGE", _four_scales(32, 5, 10, 14, 1680, post=False)),
    "cifar10_large_reg": (
        "cifar/cls_mdeq_LARGE_reg",
        _four_scales(32, 5, 10, 14, 1680, post=False),
    ),
    "cifar10_large_phantom": ("phantom_gradient/cifar_large", _four_scales(32, 5, 10, 14, 1680)),
    "imagenet_small": ("imagenet/cls_mdeq_SMALL", _four_scales(32, 5, 1000, 24)),
    "imagenet_small_phantom": (
        "phantom_gradient/imagenet_small",
        _four_scales(32, 5, 1000, 24),
    ),
    "imagenet_small_reg": (
        "imagenet/cls_mdeq_SMALL_reg",
        _four_scales(32, 5, 1000, 28, post=False),
    ),
    "imagenet_large": ("imagenet/cls_mdeq_LARGE", _four_scales(80, 5, 1000, 32)),
    "imagenet_large_reg": (
        "imagenet/cls_mdeq_LARGE_reg",
        _four_scales(80, 5, 1000, 32, post=False),
    ),
    "imagenet_xl": ("imagenet/cls_mdeq_XL", _four_scales(88, 6, 1000, 32)),
    "cityscapes_small": ("cityscapes/seg_mdeq_SMALL", _four_scales(32, 5, 19)),
    "cityscapes_large": ("cityscapes/seg_mdeq_LARGE", _four_scales(80, 5, 19)),
    "cityscapes_xl": ("cityscapes/seg_mdeq_XL", _four_scales(88, 6, 19)),
}


class Recognised(NamedTuple):
    """What a file is.

    Attributes:
        architecture: as inferred; None: not an MDEQ.
        misfit: entries that the file lacks, or has in addition.
        text: for people; the known architectures that it fits, with the overrides they need.
    """

    architecture: Architecture | None
    misfit: Misfit | None
    text: str


def recognise(tensors: Mapping[str, np.ndarray]) -> Recognised:
    """Recognises the network of named tensors (see `standard_names`)."""
    found = infer_architecture({name: tensor.shape for name, tensor in tensors.items()})
    if found is None:
        return Recognised(None, None, "not an MDEQ classifier or segmenter")
    misfit = find_misfit(tensors, name_table(found))
    near = {name: overrides(a, found) for name, (_, a) in KNOWN_ARCHITECTURES.items()}
    near = {name: changes for name, changes in near.items() if changes is not None}
    fewest = min(map(len, near.values()), default=0)
    names = [
        f"configs/{name}.py (the original's {KNOWN_ARCHITECTURES[name][0]})"
        + "".join(f" {change}" for change in changes)
        for name, changes in near.items()
        if len(changes) == fewest
    ]
    text = " or ".join(names)
    if not names:
        fields = ", ".join(f"{field}={value}" for field, value in found._asdict().items())
        text = f"an MDEQ that no config here describes ({fields})"
    if misfit.count:
        text = f"incomplete or altered, {misfit.count} tensors do not fit; nearest is {text}"
    return Recognised(found, misfit, text)


def overrides(have: Architecture, want: Architecture) -> list[str] | None:
    """The flags that make `have` into `want`; None where more than `FLAGS` differ."""
    differing = [f for f in Architecture._fields if getattr(have, f) != getattr(want, f)]
    if not set(differing) <= set(FLAGS):
        return None
    return [f"--config.model.{field}={getattr(want, field)}" for field in differing]


def remedy(config, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The flags that make a config fit named tensors; empty if there are none."""
    found = recognise(tensors)
    if found.architecture is None or found.misfit is None or found.misfit.count:
        return []
    return overrides(architecture_of(config.model), found.architecture) or []
