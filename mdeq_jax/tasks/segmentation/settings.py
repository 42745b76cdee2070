"""How images are segmented in evaluation: the fields of `config.eval` that segmentation reads."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from mdeq_jax.models import family_of


class InferenceSettings(NamedTuple):
    """How images are segmented.

    Attributes:
        factor: number that the sides of the network's input must be multiples of.
        scales: of the image. Each is segmented, and the probabilities are averaged.
        flip: whether to segment the mirrored image too.
        window: height and width of sliding windows; None: the whole image at once.
        stride: of the windows, down and right.
        least: height and width to which smaller images are padded.
    """

    factor: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    least: tuple[int, int] = (1, 1)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "InferenceSettings":
        """The settings of `config.model` and `config.eval`; a stride of None is 2/3 of the window.

        A network for inputs of one size takes windows of this size.

        Raises:
            ValueError: a setting that cannot work.
        """
        settings = config.eval
        family = family_of(config)
        factor, only = family.input_multiple(config), family.input_size(config)
        scales = tuple(settings.scales)
        numbers = all(isinstance(scale, int | float) for scale in scales)
        if not scales or not numbers or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(
                f"eval.scales={scales} must be one or more numbers above 0; (1.0,) is the image "
                "as it is."
            )
        window, stride = (_sides(settings, field) for field in ("window", "stride"))
        if only is not None and window not in (None, only):
            raise ValueError(
                f"eval.window={window} must be None or {only}: model.name={config.model.name!r} "
                "takes images of data.image_size only."
            )
        window = only if window is None else window
        if window is None and stride is not None:
            raise ValueError(f"eval.stride={stride} has no effect without eval.window.")
        if window is not None:
            if any(side < 1 or side % factor for side in window):
                raise ValueError(
                    f"eval.window={window} must be (height, width), both multiples of {factor}, "
                    "which the network's scales need."
                )
            # Windows overlap by a third, as the original's.
            stride = stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
            if any(not 1 <= s <= w for s, w in zip(stride, window)):
                raise ValueError(
                    f"eval.stride={stride} must be (down, right), each from 1 to that side of "
                    f"eval.window={window}, or pixels between the windows would be left out."
                )
        return cls(factor, scales, settings.flip, window, stride, only or (1, 1))

    @property
    def nearest_scale(self) -> float:
        """The scale nearest to 1."""
        return min(self.scales, key=lambda scale: abs(math.log(scale)))

    @property
    def single_pass(self) -> bool:
        """Whether one forward pass of the whole image gives the result."""
        return len(self.scales) == 1 and not self.flip and self.window is None


def _sides(settings: ConfigDict, field: str) -> tuple[int, int] | None:
    """A pair of `config.eval`, or None; "None" on the command line makes (None,) of a tuple."""
    given = settings[field]
    if given is None or tuple(given) == (None,):
        return None
    sides = tuple(given)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(
            f"eval.{field}={sides} must be two whole numbers of pixels, down and right, or None."
        )
    return sides
