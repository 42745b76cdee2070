"""From a config to a network with RepMLPs, and the rows of the families."""

from typing import TYPE_CHECKING

from mdeq_jax.layers import BatchNorm
from mdeq_jax.models.family import Family
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.models.repmlp.blocks import BlockSpec
from mdeq_jax.models.repmlp.deploy import deploy_repmlp
from mdeq_jax.models.repmlp.mlp import PureMLP
from mdeq_jax.models.repmlp.resnet import Backbone, RepMLPResNet
from mdeq_jax.models.repmlp.validate import validate_mlp, validate_resnet, validate_segmenter
from mdeq_jax.models.segmentation import BackboneSegmenter, SegmentationHead

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def batch_norm(config: "ConfigDict") -> BatchNorm:
    """The batch norm that the layers of a network copy, with PyTorch's default momentum 0.1."""
    return BatchNorm(sync=config.train.sync_batch_norm, parent=None)


def segmentation_head(config: "ConfigDict") -> SegmentationHead:
    """The head of a segmenter; deploying leaves it as it is."""
    model = config.model
    return SegmentationHead(
        model.final_conv_kernel,
        model.num_classes,
        batch_norm(config),
        PRECISIONS[config.precision],
        parent=None,
    )


def build_resnet(config: "ConfigDict") -> RepMLPResNet:
    """A RepMLP-ResNet with class logits `[B, num_classes]`."""
    return RepMLPResNet(_backbone(config), config.model.num_classes)


def build_segmenter(config: "ConfigDict") -> BackboneSegmenter:
    """A RepMLP-ResNet with pixel logits `[B, H / 4, W / 4, num_classes]`."""
    return BackboneSegmenter(_backbone(config), segmentation_head(config))


def _backbone(config: "ConfigDict") -> Backbone:
    model = config.model
    return Backbone(
        model.block,
        tuple(model.num_blocks),
        tuple(model.channels),
        tuple(model.bottleneck_reduction),
        _spec(config),
        parent=None,
    )


def build_mlp(config: "ConfigDict") -> PureMLP:
    """A network of RepMLPs and 1x1 convolutions with class logits `[B, num_classes]`."""
    model = config.model
    return PureMLP(tuple(model.channels), tuple(model.num_blocks), _spec(config), model.num_classes)


def _spec(config: "ConfigDict") -> BlockSpec:
    model = config.model
    return BlockSpec(
        partition=tuple(model.partition),
        kernels=tuple(model.kernels),
        groups=model.groups,
        reduction=model.global_reduction,
        norm=batch_norm(config),
        merged=model.deployed,
        dtype=PRECISIONS[config.precision],
    )


def input_size(config: "ConfigDict") -> tuple[int, int] | None:
    """The size of every input, because there are weights for each pixel position."""
    size = config.data.image_size
    return None if size is None else (size[0], size[1])


def notes(config: "ConfigDict", training: bool) -> list[str]:
    """What the merged form lacks, if it is to be trained."""
    if not (training and config.model.deployed):
        return []
    return [
        "model.deployed=True trains the merged form: batch norms and convolutions that are merged "
        "are missing from it, and training does not bring them back. Train with "
        "model.deployed=False and deploy then, unless you mean to fine-tune the merged form."
    ]


_FIELDS = (
    "name",
    "channels",
    "num_blocks",
    "partition",
    "kernels",
    "groups",
    "global_reduction",
    "num_classes",
    "deployed",
)

_RESNET_FIELDS = (*_FIELDS, "block", "bottleneck_reduction")

RESNET = Family(
    build=build_resnet,
    validate=validate_resnet,
    task="classification",
    architecture_fields=_RESNET_FIELDS,
    transferable=("backbone",),
    transfer_fields=("partition",),
    has_equilibrium=False,
    input_size=input_size,
    notes=notes,
    deploy=deploy_repmlp,
)
SEGMENTER = RESNET._replace(
    build=build_segmenter,
    validate=validate_segmenter,
    task="segmentation",
    architecture_fields=(*_RESNET_FIELDS, "final_conv_kernel"),
)
MLP = Family(
    build=build_mlp,
    validate=validate_mlp,
    task="classification",
    architecture_fields=_FIELDS,
    has_equilibrium=False,
    input_size=input_size,
    notes=notes,
    deploy=deploy_repmlp,
)
