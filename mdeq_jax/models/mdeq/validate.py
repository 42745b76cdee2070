"""Settings of an MDEQ that cannot work, refused before anything is compiled."""

from typing import TYPE_CHECKING

from mdeq_jax.models.segmentation import check_final_conv_kernel

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def validate_classifier(config: "ConfigDict") -> None:
    """Refuses settings of a classifier that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    _validate(config, per_scale=("num_blocks", "big_kernels", "head_channels"))


def validate_segmenter(config: "ConfigDict") -> None:
    """Refuses settings of a segmenter that cannot work.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    _validate(config, per_scale=("num_blocks", "big_kernels"))
    check_final_conv_kernel(config)


def _validate(config: "ConfigDict", per_scale: tuple[str, ...]) -> None:
    _check_scales(config.model, per_scale)
    _check_numbers(config.model)
    if config.data.image_size is not None:
        height, width = config.data.image_size
        model = config.model
        check_image_size((1, height, width, 3), model.downsample_times, len(model.channels))


def _check_scales(model: "ConfigDict", per_scale: tuple[str, ...]) -> None:
    """The fields with one entry for each resolution, and the groups of the widths."""
    scales = len(model.channels)
    if scales < 1:
        raise ValueError("model.channels needs one entry for each resolution; it is empty.")
    for field in per_scale:
        if len(model[field]) != scales:
            raise ValueError(
                f"model.{field} must have one entry for each of the {scales} resolutions of "
                f"model.channels={tuple(model.channels)}; got {tuple(model[field])}."
            )
    if model.num_groups < 2 or model.num_groups % 2:
        raise ValueError(
            "model.num_groups must be even (half as many groups are used after the fusion); "
            f"got {model.num_groups}."
        )
    for channels in model.channels:
        if channels % model.num_groups:
            raise ValueError(
                f"Each entry of model.channels must be a multiple of model.num_groups="
                f"{model.num_groups}, the groups of its group norms; got {channels} in "
                f"{tuple(model.channels)}."
            )
    if min(model.num_blocks) < 1:
        raise ValueError(
            f"Each entry of model.num_blocks must be at least 1; got {tuple(model.num_blocks)}."
        )
    if not set(model.big_kernels) <= {0, 1, 2}:
        raise ValueError(
            "Each entry of model.big_kernels must be 0, 1 or 2: how many of the two convolutions "
            f"of every block are 5x5; got {tuple(model.big_kernels)}."
        )


def _check_numbers(model: "ConfigDict") -> None:
    if not 0 <= model.dropout < 1:
        raise ValueError(f"model.dropout must be in [0, 1); got {model.dropout}.")
    if model.num_classes < 1:
        raise ValueError(f"model.num_classes must be at least 1; got {model.num_classes}.")
    if model.downsample_times < 0:
        raise ValueError(
            f"model.downsample_times must not be negative; got {model.downsample_times}."
        )


def image_multiple(config: "ConfigDict") -> int:
    """The number that height and width of an image must be multiples of."""
    return _multiple(config.model.downsample_times, len(config.model.channels))


def check_image_size(shape: tuple[int, ...], downsample_times: int, num_scales: int) -> None:
    """Refuses images `[B, H, W, 3]` that cannot be halved as often as the network does.

    Raises:
        ValueError: height or width is no such multiple, or `shape` is not that of such images.
    """
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"images must have shape [batch, height, width, 3]; got {tuple(shape)}.")
    factor = _multiple(downsample_times, num_scales)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"Image height and width must be multiples of {factor} (2^{downsample_times} in the "
            f"stem, 2^{num_scales - 1} between {num_scales} scales); got {shape[1]}x{shape[2]}. "
            "Resize or pad the images, or use fewer scales or a smaller downsample_times."
        )


def _multiple(downsample_times: int, num_scales: int) -> int:
    return 2 ** (downsample_times + num_scales - 1)
