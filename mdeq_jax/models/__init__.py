"""The model families, one row each, and `build_model`, which makes a model from a config."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from mdeq_jax.models.checks import check_program, check_size
from mdeq_jax.models.deq_transformer.build import DEQ_TRANSFORMER, TRANSFORMER
from mdeq_jax.models.family import EquilibriumModel, Family
from mdeq_jax.models.mdeq.build import CLASSIFIER, SEGMENTER
from mdeq_jax.models.mdeq.cell import CellInput, CellSpec, MDEQCell, apply_cell
from mdeq_jax.models.mdeq.network import MDEQ
from mdeq_jax.models.output import ForwardOptions, ModelOutput
from mdeq_jax.models.repmlp.build import MLP, RESNET
from mdeq_jax.models.repmlp.build import SEGMENTER as RESNET_SEGMENTER
from mdeq_jax.models.repmlpnet.build import REPMLPNET
from mdeq_jax.models.repmlpnet.build import SEGMENTER as REPMLPNET_SEGMENTER
from mdeq_jax.models.trellisnet.build import DEQ_TRELLISNET

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MODELS: dict[str, Family] = {
    "mdeq_classifier": CLASSIFIER,
    "mdeq_segmenter": SEGMENTER,
    "repmlp_mlp": MLP,
    "repmlp_resnet": RESNET,
    "repmlp_segmenter": RESNET_SEGMENTER,
    "repmlpnet": REPMLPNET,
    "repmlpnet_segmenter": REPMLPNET_SEGMENTER,
    "deq_transformer": DEQ_TRANSFORMER,
    "transformer": TRANSFORMER,
    "deq_trellisnet": DEQ_TRELLISNET,
}

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
    "check_model",
    "deploy",
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


def check_model(config: "ConfigDict") -> None:
    """Refuses settings of the model that cannot work.

    Raises:
        ValueError: names the setting, the requirement and the choices.
    """
    check_program(config)
    check_size(config)
    family_of(config).validate(config)


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
    check_model(config)
    return family_of(config).build(config)


def deploy(
    variables: Mapping, config: "ConfigDict", *, dtype: Any = None
) -> tuple[dict, "ConfigDict"]:
    """The merged form of a trained network, with the same outputs in evaluation mode.

    Args:
        variables: of the trained network, {"params": ..., "batch_stats": ...}; not changed.
        config: of the trained network; not changed.
        dtype: of the merged arrays; None: that of the trained ones. They are computed in float64.

    Returns:
        `(variables, config)`, the latter with `model.deployed=True`.

    Raises:
        ValueError: the family has no merged form, the network is deployed already, or the variables
            are not those of the config's network.
    """
    family = family_of(config)
    if family.deploy is None:
        choices = sorted(name for name, row in MODELS.items() if row.deploy is not None)
        raise ValueError(
            f"model.name={config.model.name!r} has no merged form; these have one: {choices}."
        )
    check_model(config)
    return family.deploy(variables, config, family.build(config), dtype)
