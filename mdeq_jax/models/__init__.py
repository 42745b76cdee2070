"""The model families, one row each, and `build_model`, which makes a model from a config."""

from typing import TYPE_CHECKING

import flax.linen as nn

from mdeq_jax.models.family import EquilibriumModel, Family
from mdeq_jax.models.mdeq.build import CLASSIFIER, SEGMENTER
from mdeq_jax.models.mdeq.cell import CellInput, CellSpec, MDEQCell, apply_cell
from mdeq_jax.models.mdeq.network import MDEQ
from mdeq_jax.models.output import ForwardOptions, ModelOutput

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MODELS: dict[str, Family] = {"mdeq_classifier": CLASSIFIER, "mdeq_segmenter": SEGMENTER}

__all__ = [
    "MDEQ",
    "MODELS",
    "CellInput",
    "CellSpec",
    "EquilibriumModel",
    "Family",
    "ForwardOptions",
    "MDEQCell",
    "ModelOutput",
    "apply_cell",
    "build_model",
    "family_of",
]


def family_of(config: "ConfigDict") -> Family:
    """The row of `config.model.name`.

    Raises:
        ValueError: there is no such family.
    """
    name = config.model.name
    if name not in MODELS:
        raise ValueError(f"model.name must be one of {sorted(MODELS)}; got {name!r}.")
    return MODELS[name]


def build_model(config: "ConfigDict") -> nn.Module:
    """The Flax module that a config describes.

    Args:
        config: a config of `configs/`; its `model`, `solver`, `gradient`, `precision`, `pallas`,
            `train.sync_batch_norm` and `data.image_size` are read.

    Returns:
        The module: `variables = model.init(rng, inputs)`, `out = model.apply(variables, inputs)`,
        whose `out` is a `ModelOutput`. For an `MDEQ` the inputs are images `[B, H, W, 3]`.

    Raises:
        ValueError: a setting that cannot work; it names the setting, the requirement and the
            choices.
    """
    family = family_of(config)
    family.validate(config)
    return family.build(config)
