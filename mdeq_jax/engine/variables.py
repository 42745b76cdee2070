"""Variables into and out of work directories."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.checkpoint_folder import BEST, NEWEST
from mdeq_jax.engine.state import build_optimizer, make_state, variable_shapes
from mdeq_jax.engine.weights_file import WEIGHTS_FILE, read_weights
from mdeq_jax.engine.workdir import (
    check_architecture,
    check_without_checkpoints,
    check_writable,
    write_config,
)
from mdeq_jax.models import build_model, family_of


def save_variables(variables: dict, config: ConfigDict, workdir: str | Path) -> None:
    """Makes a work directory for variables, as if they had been trained for no steps.

    `eval.py` evaluates it, and `train.py` starts from it at step 0 with a fresh optimiser.

    Args:
        variables: Flax variables of `build_model(config)`, float32.
        config: the whole config; a copy goes into `workdir`.
        workdir: made if missing.

    Raises:
        OSError: `workdir` is a file or cannot be written.
        ValueError: it holds checkpoints already.
    """
    workdir = Path(workdir)
    check_writable(workdir)
    check_without_checkpoints(workdir)
    # The number of steps shapes the learning rate only, which the state does not hold.
    optimizer = build_optimizer(
        config.train,
        num_steps=config.train.warmup_steps + 1,
        shared=family_of(config).shared_parameters(config),
    )
    state = make_state(variables, optimizer)
    write_config(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(jax.device_get(state), {})  # no data has been read


def load_variables(
    config: ConfigDict, workdir: str | Path, checkpoint: str = "latest"
) -> tuple[dict, int]:
    """The variables of a work directory, on the host, and their step.

    Args:
        config: a config of the same architecture.
        workdir: work directory; or a folder of `mdeq_jax.pretrained.save`, which holds one
            checkpoint only.
        checkpoint: "latest", "best", or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is of another architecture, or `checkpoint` is none of the above.
    """
    if not (checkpoint in ("latest", "best") or checkpoint.isdigit()):
        raise ValueError(f"checkpoint must be 'latest', 'best' or a step; got {checkpoint!r}.")
    workdir, like = Path(workdir), variable_shapes(build_model(config), config)
    if (workdir / WEIGHTS_FILE).is_file() and not (workdir / NEWEST).is_dir():
        check_architecture(workdir, config)
        return read_weights(workdir / WEIGHTS_FILE, like)
    folder = BEST if checkpoint == "best" else NEWEST
    if not (workdir / folder).is_dir():
        raise FileNotFoundError(
            f"{workdir} holds no {folder if folder == NEWEST else 'best checkpoint'}. Train first "
            "(train.py), convert a PyTorch file (convert_torch_weights.py), or name a directory "
            "where that was done."
        )
    check_architecture(workdir, config)
    with Checkpoints(workdir, folder=folder, write=False) as checkpoints:
        return checkpoints.restore_variables(
            like, int(checkpoint) if checkpoint.isdigit() else None
        )
