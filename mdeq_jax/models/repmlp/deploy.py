"""From a trained network with RepMLPs to its merged form, which computes the same."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mdeq_jax.models.repmlp.merge import merge_conv_norm, merge_repmlp, merge_repmlp_block

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Path = tuple[str, ...]
Merge = Callable[[dict, dict, Path], dict | None]
MOST_LISTED = 8  # differences in an error


def deploy_repmlp(variables: Mapping, config: "ConfigDict", model: nn.Module, dtype: Any):
    """Merges every RepMLP and every convolution with a batch norm, in any mixture.

    The head of a segmenter stays as it is.

    Args:
        variables: of the trained network, {"params": ..., "batch_stats": ...}.
        config: of the trained network.
        model: the trained network.
        dtype: of the merged arrays; None: that of the trained ones. They are computed in float64.

    Returns:
        `(variables, config)` of the merged network. A classifier has no "batch_stats": no batch
        norm is left.

    Raises:
        ValueError: the network is deployed already, or the variables are not its.
    """
    partition = tuple(config.model.partition)

    def merge(params, stats, path):
        if path[0] == "head":
            return None
        if "fc3_norm" in params:
            return merge_repmlp(params, stats, partition)
        if "conv" in params and "norm" in params:
            return merge_conv_norm(params, stats)
        return None

    return deploy(variables, config, model, merge, dtype)


def deploy_repmlpnet(variables: Mapping, config: "ConfigDict", model: nn.Module, dtype: Any):
    """Merges the RepMLP blocks of a RepMLPNet; all other batch norms stay, as in the original.

    Arguments, result and errors as for `deploy_repmlp`, with "batch_stats".
    """

    def merge(params, stats, path):
        if "fc3_norm" not in params:
            return None
        _, unit, _ = path  # backbone, stageI_J, repmlp
        side = config.model.partitions[int(unit.removeprefix("stage").split("_")[0])]
        return merge_repmlp_block(params, stats, (side, side))

    return deploy(variables, config, model, merge, dtype)


def deploy(variables: Mapping, config: "ConfigDict", model: nn.Module, merge: Merge, dtype: Any):
    """Replaces all parts of a network for which `merge` returns something.

    Args:
        variables: of the trained network.
        config: of the trained network.
        model: the trained network.
        merge: (params, stats, path) of a part to merged params; None: look at the parts within.
        dtype: of the arrays; None: as they are.

    Returns:
        `(variables, config)` of the merged network.

    Raises:
        ValueError: the network is deployed already, or the variables are not its, or not finite.
    """
    if config.model.deployed:
        raise ValueError(
            "The network is deployed already (model.deployed=True): its batch norms and "
            "convolutions are gone. Deploy the network that was trained, model.deployed=False."
        )
    variables = jax.tree.map(np.asarray, dict(variables))
    _check_variables(variables, config, model)
    like = jax.tree.leaves(variables["params"])[0].dtype

    def merge_to_type(params, stats, path):
        merged = merge(params, stats, path)
        _check_finite(merged, path)
        return jax.tree.map(lambda array: array.astype(dtype or like), merged)

    params, stats = _walk(variables["params"], variables["batch_stats"], merge_to_type, ())
    merged = {"params": params, "batch_stats": stats} if stats else {"params": params}
    if dtype is not None:
        merged = jax.tree.map(lambda array: array.astype(dtype), merged)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.deployed = True
    return merged, config


def _check_finite(merged: dict | None, path: Path) -> None:
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(merged)):
        raise ValueError(
            f"{'/'.join(path)} cannot be merged: its weights are not finite, or a running variance "
            "is negative."
        )


def _check_variables(variables: Mapping, config: "ConfigDict", model: nn.Module) -> None:
    """Refuses variables that are not those of the trained network.

    Raises:
        ValueError: names what differs.
    """
    images = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), np.float32)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    expected: dict[Path, Any] = flatten_dict(shapes)  # pyright: ignore[reportAssignmentType]
    given: dict[Path, Any] = flatten_dict(dict(variables))  # pyright: ignore[reportAssignmentType]
    wrong = [f"{'/'.join(path)} is missing" for path in expected.keys() - given.keys()]
    wrong += [f"{'/'.join(path)} is unexpected" for path in given.keys() - expected.keys()]
    wrong += [
        f"{'/'.join(path)} has shape {given[path].shape} instead of {expected[path].shape}"
        for path in expected.keys() & given.keys()
        if given[path].shape != expected[path].shape
    ]
    if not wrong:
        return
    more = f"\n  and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
    raise ValueError(
        "The variables are not those of the network in training form that the config describes:\n  "
        + "\n  ".join(sorted(wrong)[:MOST_LISTED])
        + more
        + "\nIf they have been deployed already, set model.deployed=True to run them."
    )


def _walk(params: Mapping, stats: Mapping, merge: Merge, path: Path) -> tuple[dict, dict]:
    """Params and statistics after `merge`, part by part; parts without statistics are absent."""
    new_params, new_stats = {}, {}
    for key, part in params.items():
        if not isinstance(part, Mapping):
            new_params[key] = part
            continue
        of_part, where = stats.get(key, {}), (*path, key)
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
