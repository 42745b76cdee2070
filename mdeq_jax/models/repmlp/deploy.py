"""From a trained network with RepMLPs to its merged form, which computes the same."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mdeq_jax.models.repmlp.merge import merge_conv_norm, merge_repmlp, merge_repmlp_block

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Merge = Callable[[dict, dict, str], dict | None]


def deploy_repmlp(variables: Mapping, config: "ConfigDict", *, dtype: Any = None):
    """Merges every RepMLP and every convolution with a batch norm, in any mixture.

    Args:
        variables: of the trained network, {"params": ..., "batch_stats": ...}.
        config: of the trained network.
        dtype: of the merged arrays; None: that of the trained ones. They are computed in float64.

    Returns:
        `(variables, config)` of the merged network. It has no "batch_stats": no batch norm is left.

    Raises:
        ValueError: the network is deployed already, or the variables are not its.
    """
    partition = tuple(config.model.partition)

    def merge(params, stats, name):
        del name
        if "fc3_norm" in params:
            return merge_repmlp(params, stats, partition)
        if "conv" in params and "norm" in params:
            return merge_conv_norm(params, stats)
        return None

    return deploy(variables, config, merge, dtype)


def deploy_repmlpnet(variables: Mapping, config: "ConfigDict", *, dtype: Any = None):
    """Merges the RepMLP blocks of a RepMLPNet; all other batch norms stay, as in the original.

    Arguments, result and errors as for `deploy_repmlp`, with "batch_stats".
    """

    def merge(params, stats, name):
        if "fc3_norm" not in params:
            return None
        side = config.model.partitions[int(name.removeprefix("stage").split("_")[0])]
        return merge_repmlp_block(params, stats, (side, side))

    return deploy(variables, config, merge, dtype)


def deploy(variables: Mapping, config: "ConfigDict", merge: Merge, dtype: Any):
    """Replaces all parts of a network for which `merge` returns something.

    Args:
        variables: of the trained network.
        config: of the trained network.
        merge: (params, stats, name) of a part, where `name` is that of the part of the network
            that it lies in, to merged params; None: look at the parts within.
        dtype: of the arrays; None: as they are.

    Returns:
        `(variables, config)` of the merged network.

    Raises:
        ValueError: the network is deployed already, or the variables are not its.
    """
    if config.model.deployed:
        raise ValueError(
            "The network is deployed already (model.deployed=True): its batch norms and "
            "convolutions are gone. Deploy the network that was trained, model.deployed=False."
        )
    if "batch_stats" not in variables:
        raise ValueError(
            "Merging takes the running statistics of a trained network, and the variables have no "
            '"batch_stats". They may be of a deployed network already; then set '
            "model.deployed=True to run it."
        )
    variables = jax.tree.map(np.asarray, dict(variables))
    dtype = dtype or jax.tree.leaves(variables["params"])[0].dtype
    params, stats = _walk(variables["params"], variables["batch_stats"], merge, "")
    merged = {"params": params, "batch_stats": stats} if stats else {"params": params}
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.deployed = True
    return jax.tree.map(lambda array: array.astype(dtype), merged), config


def _walk(params: Mapping, stats: Mapping, merge: Merge, name: str) -> tuple[dict, dict]:
    """Params and statistics after `merge`, part by part; parts without statistics are absent."""
    new_params, new_stats = {}, {}
    for key, part in params.items():
        if not isinstance(part, Mapping):
            new_params[key] = part
            continue
        of_part = stats.get(key, {})
        where = name or key
        merged = merge(dict(part), dict(of_part), where)
        if merged is not None:
            new_params[key] = merged
            continue
        new_params[key], below = _walk(part, of_part, merge, where)
        if below:
            new_stats[key] = below
    new_stats.update(
        {k: v for k, v in stats.items() if k not in params or not isinstance(v, Mapping)}
    )
    return new_params, new_stats
