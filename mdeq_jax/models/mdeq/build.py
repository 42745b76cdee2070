"""From a config to an MDEQ, and the rows of its two variants in the table of families."""

from typing import TYPE_CHECKING

import flax.linen as nn

from mdeq_jax.implicit import build_gradient
from mdeq_jax.layers import BatchNorm
from mdeq_jax.models.family import Family
from mdeq_jax.models.mdeq.cell import CellSpec, MDEQCell
from mdeq_jax.models.mdeq.heads import ClassificationHead, Stem
from mdeq_jax.models.mdeq.network import MDEQ
from mdeq_jax.models.mdeq.validate import (
    image_multiple,
    validate_classifier,
    validate_segmenter,
)
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.models.segmentation import SEGMENTER_MOMENTUM, SegmentationHead
from mdeq_jax.solvers import build_solver

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The original's momentum, as Flax counts it: the weight of the old statistics.
CLASSIFIER_MOMENTUM = 0.9


def build_classifier(config: "ConfigDict") -> MDEQ:
    """An MDEQ with class logits `[B, num_classes]`."""
    model, norm = config.model, _batch_norm(config, CLASSIFIER_MOMENTUM)
    head = ClassificationHead(
        tuple(model.head_channels),
        model.final_channels,
        model.num_classes,
        norm,
        PRECISIONS[config.precision],
        parent=None,
    )
    return _build(config, norm, head)


def build_segmenter(config: "ConfigDict") -> MDEQ:
    """An MDEQ with pixel logits `[B, H_0, W_0, num_classes]` at its highest resolution."""
    model, norm = config.model, _batch_norm(config, SEGMENTER_MOMENTUM)
    head = SegmentationHead(
        model.final_conv_kernel,
        model.num_classes,
        norm,
        PRECISIONS[config.precision],
        parent=None,
    )
    return _build(config, norm, head)


def _build(config: "ConfigDict", norm: BatchNorm, head: nn.Module) -> MDEQ:
    """The network around a head; `norm` is the batch norm that the stem copies."""
    model, solver = config.model, config.solver
    f_solver = build_solver(solver.forward, "solver.forward", pallas=config.pallas)
    b_solver = build_solver(solver.backward, "solver.backward", pallas=config.pallas)
    stem = Stem(
        model.channels[0],
        model.downsample_times,
        inject=model.downsample_times > 0 or len(model.channels) > 2,
        norm=norm,
        dtype=PRECISIONS[config.precision],
        parent=None,
    )
    return MDEQ(
        stem=stem,
        cell=MDEQCell(_cell_spec(config), parent=None),
        head=head,
        f_solver=f_solver,
        gradient=build_gradient(config.gradient, solver.forward, f_solver, b_solver),
        downsample_times=model.downsample_times,
    )


def _cell_spec(config: "ConfigDict") -> CellSpec:
    model = config.model
    return CellSpec(
        channels=tuple(model.channels),
        num_blocks=tuple(model.num_blocks),
        big_kernels=tuple(model.big_kernels),
        expansion=model.expansion,
        num_groups=model.num_groups,
        weight_norm=model.weight_norm,
        fuse_weight_norm=model.fuse_weight_norm,
        block_gn_affine=model.block_gn_affine,
        fuse_gn_affine=model.fuse_gn_affine,
        post_gn_affine=model.post_gn_affine,
        dropout=model.dropout,
        dtype=PRECISIONS[config.precision],
        pallas=config.pallas,
    )


def _batch_norm(config: "ConfigDict", momentum: float) -> BatchNorm:
    return BatchNorm(momentum=momentum, sync=config.train.sync_batch_norm, parent=None)


_BODY_FIELDS = (
    "name",
    "channels",
    "num_blocks",
    "big_kernels",
    "expansion",
    "num_groups",
    "downsample_times",
    "weight_norm",
    "fuse_weight_norm",
    "block_gn_affine",
    "fuse_gn_affine",
    "post_gn_affine",
    "num_classes",
)
_TRANSFERABLE = ("stem", "cell")  # all but the head
_TRANSFER_FIELDS = ("num_groups", "downsample_times")
_CLASSIFIER_FIELDS = ("head_channels", "final_channels")
_SEGMENTER_FIELDS = ("final_conv_kernel",)

CLASSIFIER = Family(
    build=build_classifier,
    validate=validate_classifier,
    task="classification",
    architecture_fields=(*_BODY_FIELDS, *_CLASSIFIER_FIELDS),
    ignored_fields=_SEGMENTER_FIELDS,
    transferable=_TRANSFERABLE,
    transfer_fields=_TRANSFER_FIELDS,
    input_multiple=image_multiple,
)
SEGMENTER = Family(
    build=build_segmenter,
    validate=validate_segmenter,
    task="segmentation",
    architecture_fields=(*_BODY_FIELDS, *_SEGMENTER_FIELDS),
    ignored_fields=_CLASSIFIER_FIELDS,
    transferable=_TRANSFERABLE,
    transfer_fields=_TRANSFER_FIELDS,
    input_multiple=image_multiple,
)
