"""Trains once without a stop and once killed again and again: `killed_runs.py FOLDER KILLS`.

Everything is imported once and each run is a fork, which costs only what it computes. Nothing
here may touch a device before the forks.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import chex
import jax
import jax.numpy as jnp

from configs import digits
from mdeq_jax.data import load_dataset
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.models import build_model
from mdeq_jax.training import train_and_evaluate
from tests.helpers.tiny import SINGLE_SCALE, TINY, override

FIELDS = {
    **TINY,
    **SINGLE_SCALE,
    "gradient.name": "one_step",  # the shortest to trace, which every run does anew
    "model.dropout": 0.1,
    "jacobian.weight": 1.0,
    "jacobian.frequency": 0.5,
    "train.random_forward_delta": 2,
    "train.epochs": 3.0,
    "log.every_steps": 1,
    "eval.every_epochs": 3.0,
    "checkpoint.every_epochs": 0.2,  # every second step
}


def train(workdir: Path) -> None:
    """In a fork: every checkpoint that can be seen is whole, then the training goes on."""
    config = override(digits.get_config(), FIELDS)
    steps = checkpoints_of(workdir)
    images = jnp.zeros((1, 8, 8, 3))
    like = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
    for step in steps:
        with Checkpoints(workdir, write=False) as checkpoints:
            variables, _ = checkpoints.restore_variables(like, step)
        chex.assert_tree_all_finite(variables)
    train_and_evaluate(config, workdir)


def fork(workdir: Path) -> int:
    process = os.fork()
    if process == 0:
        try:
            train(workdir)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def checkpoints_of(workdir: Path) -> list[int]:
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


def lines(workdir: Path) -> int:
    """Steps that were logged: each writes one line."""
    path = workdir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is half written now."""
    return any(not p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def kill_once(workdir: Path, during_save: bool, rng: random.Random) -> bool:
    """Starts a run and kills it; whether it was killed before it ended."""
    newest = max(checkpoints_of(workdir), default=0)  # the step that the run resumes from
    process, wanted, delay = fork(workdir), rng.randint(1, 3), rng.uniform(0, 0.05)
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        # Once a few steps have been made anew: at a random moment, or as soon as a save begins.
        if lines(workdir) >= newest + wanted and (saving(workdir) or not during_save):
            time.sleep(0 if during_save else delay)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.001)
    return False


def finish(workdir: Path) -> None:
    _, status = os.waitpid(fork(workdir), 0)
    if status:
        sys.exit(f"a run in {workdir} failed")


def main(folder: Path, kills: int) -> None:
    rng = random.Random(0)
    load_dataset(override(digits.get_config(), FIELDS).data)  # imports what the forks then share
    finish(folder / "whole")
    killed, half_written = 0, 0
    for n in range(kills):
        killed += kill_once(folder / "killed", n % 2 == 1, rng)
        half_written += saving(folder / "killed")
    finish(folder / "killed")
    print(f"killed {killed} half_written {half_written}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
