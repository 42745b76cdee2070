"""Starting to train from a part of another network, usually one for another task."""

from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from mdeq_jax.engine.saved_config import set_fields
from mdeq_jax.engine.state import TrainState
from mdeq_jax.engine.variables import load_variables
from mdeq_jax.engine.workdir import CONFIG_FILE, field_of, read_fields
from mdeq_jax.models import family_of
from mdeq_jax.runtime.hosts import log


def start_from_checkpoint(state: TrainState, config: ConfigDict) -> TrainState:
    """`state` with the transferable part of the network in `config.init.from_checkpoint`.

    The family names that part, usually all but the head. Everything else stays as it is. Prints
    which part is loaded and which is fresh.

    Args:
        state: a fresh one of `config`.
        config: the whole config; the other network may be of another task and head.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: its transferable part is another; lists every difference.
    """
    source = Path(config.init.from_checkpoint).expanduser()
    source_config, family = _config_of(source, config), family_of(config)
    variables, step = load_variables(source_config, source)
    target, other = (flatten_dict(tree) for tree in (state.variables, variables))
    wrong = [
        f"model.{field}: {there} there, {here} here"
        for field in family.transfer_fields
        if (there := field_of(source_config.model, field))
        != (here := field_of(config.model, field))
    ]
    shared = _part(other, family.transferable)
    wrong += _differences(_part(target, family.transferable), shared)
    if wrong or not shared:
        parts = " and ".join(family.transferable) or "network"
        raise ValueError(
            f"init.from_checkpoint={source}: its {parts} cannot be used in this config:\n  "
            + "\n  ".join(wrong or ["no part of this model is transferable"])
            + f"\nChange config.model to match ({source / CONFIG_FILE}), or start from another."
        )
    log(f"Starting from {source} ({source_config.model.name}, step {step:,}):")
    log(_table(target, family.transferable))
    return state.starting_from(unflatten_dict(target | shared))


def _config_of(source: Path, config: ConfigDict) -> ConfigDict:
    """`config` with the model and the data of the work directory `source`."""
    path = source / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"init.from_checkpoint={source}: there is no {CONFIG_FILE} in it. It must be a work "
            "directory of train.py or of convert_torch_weights.py."
        )
    saved = read_fields(source)
    source_config = config.copy_and_resolve_references()
    with source_config.unlocked():
        source_config.task = saved.get("task")
        for part in ("model", "data"):  # which decide the shapes of the network and of its inputs
            set_fields(source_config[part], saved[part])
    return source_config


def _part(leaves: dict, names: tuple[str, ...]) -> dict:
    return {path: leaf for path, leaf in leaves.items() if path[1] in names}


def _differences(target: dict, other: dict) -> list[str]:
    lines = [f"{'/'.join(path)}: not there" for path in sorted(target.keys() - other.keys())]
    lines += [
        f"{'/'.join(path)}: not in this config" for path in sorted(other.keys() - target.keys())
    ]
    return lines + [
        f"{'/'.join(path)}: {other[path].shape} there, {target[path].shape} here"
        for path in sorted(target.keys() & other.keys())
        if target[path].shape != other[path].shape
    ]


def _table(target: dict, loaded: tuple[str, ...]) -> str:
    """One line a part of the network: loaded or fresh, tensors, parameters."""
    lines = []
    for part in dict.fromkeys((*loaded, *(path[1] for path in target))):
        leaves = {path: leaf for path, leaf in target.items() if path[1] == part}
        parameters = sum(leaf.size for path, leaf in leaves.items() if path[0] == "params")
        origin = "loaded" if part in loaded else "fresh"
        lines.append(f"  {part:<6} {origin:<8} {len(leaves):4} tensors {parameters:12,} parameters")
    return "\n".join(lines)
