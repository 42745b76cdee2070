"""Settings of networks with RepMLPs that cannot work, refused before anything is compiled."""

from typing import TYPE_CHECKING

from mdeq_jax.models.checks import check_counts
from mdeq_jax.models.repmlp.module import check_groups, check_partition
from mdeq_jax.models.repmlp.resnet import BLOCKS, REPMLP_STAGES
from mdeq_jax.models.segmentation import check_final_conv_kernel
from mdeq_jax.solvers.options import check_choice

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def validate_resnet(config: "ConfigDict") -> None:
    """Refuses settings of a `repmlp_resnet` that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    model = config.model
    check_common(config)
    check_choice("model.block", model.block, BLOCKS)
    check_length("channels", model.channels, 5, "for the stem and each of the four stages")
    check_length("num_blocks", model.num_blocks, 4, "for each of the four stages")
    check_length("bottleneck_reduction", model.bottleneck_reduction, 2, "for stages 2 and 3")
    check_counts(model, "model", ("groups", "global_reduction"))
    if min(model.channels[1:]) < 4:
        raise ValueError(
            f"model.channels={tuple(model.channels)}: a stage has at least 4 channels."
        )
    if model.block == "base":
        return
    if model.block == "bottleneck" and min(model.bottleneck_reduction) < 1:
        raise ValueError(
            f"model.bottleneck_reduction={tuple(model.bottleneck_reduction)} must be positive."
        )
    height, width = config.data.image_size
    for stage in REPMLP_STAGES:
        if model.num_blocks[stage - 1] < 2:
            continue  # its first block holds no RepMLP
        narrow = 8 if model.block == "light" else 4 * model.bottleneck_reduction[stage - 2]
        side = 2 ** (stage + 1)
        size = (-(-height // side), -(-width // side))
        _check_repmlp(model, model.channels[stage] // narrow, size, f"Stage {stage}")


def validate_segmenter(config: "ConfigDict") -> None:
    """Refuses settings of a `repmlp_segmenter` that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    validate_resnet(config)
    check_final_conv_kernel(config)


def validate_mlp(config: "ConfigDict") -> None:
    """Refuses settings of a `repmlp_mlp` that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    model = config.model
    check_common(config)
    stages = len(model.channels)
    check_length("num_blocks", model.num_blocks, stages, "for each stage of model.channels")
    check_counts(model, "model", ("groups", "global_reduction"))
    height, width = config.data.image_size
    for stage, (features, depth) in enumerate(zip(model.channels, model.num_blocks)):
        if depth:
            size = (height >> stage, width >> stage)
            _check_repmlp(model, features, size, f"Stage {stage}")


def _check_repmlp(model: "ConfigDict", channels: int, size: tuple[int, int], where: str) -> None:
    """Refuses a RepMLP that cannot be built for maps of this size.

    Raises:
        ValueError: names what does not fit.
    """
    if channels < 1:
        raise ValueError(
            f"{where}: its RepMLPs would have no channel. Raise model.channels, which is "
            f"{tuple(model.channels)}."
        )
    check_groups(model.groups, channels)
    check_partition(*size, tuple(model.partition), where)
    partitions = size[0] * size[1] // (model.partition[0] * model.partition[1])
    if partitions > 1 and channels * partitions < model.global_reduction:
        raise ValueError(
            f"model.global_reduction={model.global_reduction} leaves no hidden feature of the "
            f"{channels * partitions} in {where.lower()}. Lower it."
        )


def check_common(config: "ConfigDict") -> None:
    """Checks what all families with a merged form have in common.

    Raises:
        ValueError: as there.
    """
    model = config.model
    if config.data.image_size is None:
        raise ValueError(
            f"model.name={model.name!r} has weights for each pixel position and needs "
            "data.image_size; it is None."
        )
    if len(set(model.kernels)) != len(model.kernels) or any(
        k < 1 or k % 2 == 0 for k in model.kernels
    ):
        raise ValueError(
            "model.kernels must be different odd sizes (an even kernel does not keep the size of "
            f"a map, so that it cannot be merged); got {tuple(model.kernels)}."
        )
    if not model.channels or min(model.channels) < 1:
        raise ValueError(
            f"model.channels needs a positive number for each stage; got {tuple(model.channels)}."
        )
    check_counts(model, "model", ("num_classes",))


def check_length(field: str, value: tuple, length: int, what: str) -> None:
    """Refuses a tuple of another length, or with negative entries.

    Raises:
        ValueError: names the field, its value and the length.
    """
    if len(value) != length or min(value) < 0:
        raise ValueError(
            f"model.{field} must have {length} entries, one {what}, none negative; "
            f"got {tuple(value)}."
        )
