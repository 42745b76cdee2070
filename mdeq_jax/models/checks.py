"""Checks of settings that several families share. Each raises a ValueError."""

from typing import TYPE_CHECKING

from mdeq_jax import hardware
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.solvers.options import check_choice

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def check_program(config: "ConfigDict") -> None:
    """Refuses an unknown `precision`, and Pallas kernels on hardware that they are not for."""
    check_choice("precision", config.precision, PRECISIONS)
    platform = hardware.target().platform
    if config.pallas and platform == "tpu":
        raise ValueError(
            f"pallas=True uses kernels that are written for GPUs, but JAX runs on {platform!r}. "
            "Set it to False."
        )


def check_size(config: "ConfigDict") -> None:
    """Refuses a `data.image_size` that is not a height and a width."""
    size = config.data.image_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"data.image_size must be (height, width); got {tuple(size)}.")


def check_counts(model: "ConfigDict", where: str, fields: tuple[str, ...]) -> None:
    """Refuses numbers below 1."""
    for field in fields:
        if model[field] < 1:
            raise ValueError(f"{where}.{field} must be at least 1; got {model[field]}.")


def check_rates(model: "ConfigDict", where: str, fields: tuple[str, ...]) -> None:
    """Refuses dropout rates outside [0, 1)."""
    for field in fields:
        if not 0 <= model[field] < 1:
            raise ValueError(f"{where}.{field} must be in [0, 1); got {model[field]}.")
