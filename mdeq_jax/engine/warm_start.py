"""Networks into and out of work directories: converted weights, and starts from another task."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.state import TrainState, build_optimizer, make_state
from mdeq_jax.engine.workdir import CONFIG_FILE, check_architecture, write_config
from mdeq_jax.models import build_model, family_of
from mdeq_jax.runtime import hosts


def save_variables(variables: dict, config, workdir: str | Path) -> None:
    """Makes a work directory of a network, as if it had been trained for no steps.

    `eval.py` evaluates it, `train.py` goes on from it at step 0 with a fresh optimiser.

    Args:
        variables: Flax variables of `build_model(config)`, float32.
        config: the whole config; a copy goes into `workdir`.
        workdir: made if missing.

    Raises:
        ValueError: `workdir` holds checkpoints already.
    """
    workdir = Path(workdir)
    if any((workdir / "checkpoints").glob("*")):
        raise ValueError(
            f"{workdir} holds checkpoints already: choose another --output, or remove them first."
        )
    # The number of steps shapes the learning rate only, which the state does not hold.
    optimizer = build_optimizer(config.train, num_steps=config.train.warmup_steps + 1)
    state = make_state(variables, optimizer)
    write_config(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(jax.device_get(state), {})  # no data has been read


def load_variables(workdir: str | Path, config) -> tuple[dict, int]:
    """The newest network of a work directory, and the step that it is of.

    Args:
        workdir: of `train_and_evaluate` or `save_variables`.
        config: a config of the same architecture.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another architecture.
    """
    workdir = Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{workdir} holds no checkpoints: it must be a work directory of train.py or of "
            "convert_torch_weights.py."
        )
    check_architecture(workdir, config)
    side = family_of(config).input_multiple(config)
    images = jnp.zeros((1, side, side, 3))  # the smallest that the network takes
    like = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
    with Checkpoints(workdir, write=False) as checkpoints:
        return checkpoints.restore_variables(like)


def start_from_checkpoint(state: TrainState, config) -> TrainState:
    """`state` with stem and cell of the network in `config.init.from_checkpoint`.

    The head and everything else stay as they are. Prints which part is which.

    Args:
        state: a fresh one of `config`.
        config: the whole config; the other network may be of another task and head.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: its stem or cell is another; lists every difference.
    """
    source = Path(config.init.from_checkpoint)
    source_config, family = _config_of(source, config), family_of(config)
    variables, step = load_variables(source, source_config)
    own, other = (flatten_dict(tree) for tree in (state.variables, variables))
    wrong = [
        f"model.{field}: {source_config.model[field]} there, {config.model[field]} here"
        for field in family.transfer_fields
        if source_config.model[field] != config.model[field]
    ]
    shared = family.transferable
    wrong += _differences(_shared(own, shared), _shared(other, shared))
    if wrong:
        raise ValueError(
            f"init.from_checkpoint={source}: its stem and cell are not those of this config:\n  "
            + "\n  ".join(wrong)
            + f"\nChange config.model to match ({source / CONFIG_FILE}), or start from another."
        )
    merged = unflatten_dict(own | _shared(other, shared))
    if hosts.is_main():
        print(f"Starting from {source} ({source_config.model.name}, step {step:,}):")
        print(_table(own, shared))
    return state.starting_from(merged)


def _config_of(source: Path, config):
    """`config` with the model of the work directory `source`."""
    path = source / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"init.from_checkpoint={source}: there is no {CONFIG_FILE} in it. It must be a work "
            "directory of train.py or of convert_torch_weights.py."
        )
    saved = json.loads(path.read_text())["model"]
    source_config = config.copy_and_resolve_references()
    with source_config.unlocked():
        for field, value in saved.items():
            source_config.model[field] = tuple(value) if isinstance(value, list) else value
        source_config.data.image_size = None  # of this task, not of that
    return source_config


def _shared(leaves: dict, parts: tuple[str, ...]) -> dict:
    return {path: leaf for path, leaf in leaves.items() if path[1] in parts}


def _differences(own: dict, other: dict) -> list[str]:
    lines = [f"{'/'.join(path)}: not there" for path in sorted(own.keys() - other.keys())]
    lines += [f"{'/'.join(path)}: not in this config" for path in sorted(other.keys() - own.keys())]
    return lines + [
        f"{'/'.join(path)}: {other[path].shape} there, {own[path].shape} here"
        for path in sorted(own.keys() & other.keys())
        if own[path].shape != other[path].shape
    ]


def _table(own: dict, shared: tuple[str, ...]) -> str:
    """One line a part of the network: loaded or fresh, tensors, parameters."""
    lines = []
    for part in dict.fromkeys((*shared, *(path[1] for path in own))):
        leaves = {path: leaf for path, leaf in own.items() if path[1] == part}
        parameters = sum(leaf.size for path, leaf in leaves.items() if path[0] == "params")
        origin = "loaded" if part in shared else "fresh"
        lines.append(f"  {part:<6} {origin:<8} {len(leaves):4} tensors {parameters:12,} parameters")
    return "\n".join(lines)
