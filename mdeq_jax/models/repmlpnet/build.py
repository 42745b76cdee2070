"""From a config to a RepMLPNet, and its rows of the families."""

from typing import TYPE_CHECKING

from mdeq_jax.models.checks import check_counts
from mdeq_jax.models.family import Family
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.models.repmlp.build import batch_norm, input_size, segmentation_head
from mdeq_jax.models.repmlp.build import notes as repmlp_notes
from mdeq_jax.models.repmlp.deploy import deploy_repmlpnet
from mdeq_jax.models.repmlp.module import check_partition
from mdeq_jax.models.repmlp.validate import check_common, check_length
from mdeq_jax.models.repmlpnet.block import check_sharesets
from mdeq_jax.models.repmlpnet.network import RepMLPNet, Stages
from mdeq_jax.models.segmentation import BackboneSegmenter, check_final_conv_kernel

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def build(config: "ConfigDict") -> RepMLPNet:
    """A RepMLPNet with class logits `[B, num_classes]`."""
    return RepMLPNet(_backbone(config), config.model.num_classes)


def build_segmenter(config: "ConfigDict") -> BackboneSegmenter:
    """A RepMLPNet with pixel logits `[B, H / p, W / p, num_classes]`, p the size of its patches."""
    return BackboneSegmenter(_backbone(config), segmentation_head(config))


def _backbone(config: "ConfigDict") -> Stages:
    model = config.model
    return Stages(
        channels=tuple(model.channels),
        num_blocks=tuple(model.num_blocks),
        partitions=tuple(model.partitions),
        sharesets=tuple(model.sharesets),
        kernels=tuple(model.kernels),
        patch_size=model.patch_size,
        gate_reduction=model.gate_reduction,
        ffn_expansion=model.ffn_expansion,
        norm=batch_norm(config),
        merged=model.deployed,
        dtype=PRECISIONS[config.precision],
        parent=None,
    )


def map_sizes(config: "ConfigDict") -> list[tuple[int, int]]:
    """Height and width of the map in each stage."""
    model = config.model
    height, width = (n // model.patch_size for n in config.data.image_size)
    return [(height >> stage, width >> stage) for stage in range(len(model.channels))]


def notes(config: "ConfigDict", training: bool) -> list[str]:
    """A line for each stage whose blocks move results to the position of other partitions.

    See `RepMLPBlock`: it is what the original computes. And what the merged form lacks.
    """
    model, lines = config.model, repmlp_notes(config, training)
    for stage, (height, width) in enumerate(map_sizes(config)):
        side, sharesets = model.partitions[stage], model.sharesets[stage]
        count = (height // side) * (width // side)
        if count > 1 and model.channels[stage] > sharesets:
            lines.append(
                f"model.partitions={tuple(model.partitions)}: stage {stage} has {count} partitions "
                f"of {side}x{side}. As in the original, a block moves results to other "
                "partitions and channels. One partition a stage, as in the published networks, or "
                "as many sharesets as channels avoid it."
            )
    return lines


def validate(config: "ConfigDict") -> None:
    """Refuses settings of a `repmlpnet` that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    model = config.model
    check_common(config)
    for field in ("num_blocks", "partitions", "sharesets"):
        check_length(field, model[field], len(model.channels), "for each stage of model.channels")
    check_counts(model, "model", ("patch_size", "gate_reduction", "ffn_expansion"))
    if min(model.channels) < model.gate_reduction:
        raise ValueError(
            f"model.gate_reduction={model.gate_reduction} leaves no hidden channel of "
            f"model.channels={tuple(model.channels)}. Lower it."
        )
    for stage, (height, width) in enumerate(map_sizes(config)):
        check_sharesets(model.sharesets[stage], model.channels[stage])
        side = model.partitions[stage]
        if side < 1:
            raise ValueError(f"model.partitions must be positive; got {tuple(model.partitions)}.")
        check_partition(height, width, (side, side), f"Stage {stage}")


def validate_segmenter(config: "ConfigDict") -> None:
    """Refuses settings of a `repmlpnet_segmenter` that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    validate(config)
    check_final_conv_kernel(config)


_FIELDS = (
    "name",
    "channels",
    "num_blocks",
    "partitions",
    "sharesets",
    "kernels",
    "patch_size",
    "gate_reduction",
    "ffn_expansion",
    "num_classes",
    "deployed",
)

REPMLPNET = Family(
    build=build,
    validate=validate,
    task="classification",
    architecture_fields=_FIELDS,
    transferable=("backbone",),
    has_equilibrium=False,
    input_size=input_size,
    notes=notes,
    deploy=deploy_repmlpnet,
)
SEGMENTER = REPMLPNET._replace(
    build=build_segmenter,
    validate=validate_segmenter,
    task="segmentation",
    architecture_fields=(*_FIELDS, "final_conv_kernel"),
)
