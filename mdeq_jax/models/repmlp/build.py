"""From a config to a network with RepMLPs, and the rows of the families."""

from typing import TYPE_CHECKING

import jax.numpy as jnp

from mdeq_jax.layers import BatchNorm
from mdeq_jax.models.family import Family
from mdeq_jax.models.repmlp.blocks import BlockSpec
from mdeq_jax.models.repmlp.deploy import deploy_repmlp
from mdeq_jax.models.repmlp.mlp import PureMLP
from mdeq_jax.models.repmlp.resnet import Backbone, RepMLPResNet
from mdeq_jax.models.repmlp.validate import validate_mlp, validate_resnet

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def batch_norm(config: "ConfigDict") -> BatchNorm:
    """The batch norm that the layers of a network copy, with PyTorch's default momentum 0.1."""
    return BatchNorm(sync=config.train.sync_batch_norm, parent=None)


def compute_dtype(config: "ConfigDict") -> jnp.dtype | None:
    """The type that a network computes in; None: that of its input and parameters."""
    return _DTYPES[config.precision]


def build_resnet(config: "ConfigDict") -> RepMLPResNet:
    """A RepMLP-ResNet with class logits `[B, num_classes]`."""
    model = config.model
    backbone = Backbone(
        model.block,
        tuple(model.num_blocks),
        tuple(model.channels),
        tuple(model.bottleneck_reduction),
        _spec(config),
        parent=None,
    )
    return RepMLPResNet(backbone, model.num_classes)


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
        dtype=compute_dtype(config),
    )


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

RESNET = Family(
    build=build_resnet,
    validate=validate_resnet,
    task="classification",
    architecture_fields=(*_FIELDS, "block", "bottleneck_reduction"),
    transferable=("backbone",),
    has_equilibrium=False,
    notes=notes,
    deploy=deploy_repmlp,
)
MLP = Family(
    build=build_mlp,
    validate=validate_mlp,
    task="classification",
    architecture_fields=_FIELDS,
    has_equilibrium=False,
    notes=notes,
    deploy=deploy_repmlp,
)
