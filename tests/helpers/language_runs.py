"""Trains a small language model in float64, on the devices that XLA_FLAGS simulates.

    language_runs.py TEXT [COORDINATOR PROCESS_ID] WORKDIR=EPOCHS...

One run after another, each to so many epochs; a work directory with a checkpoint resumes. With a
coordinator this is one of two processes.
"""

import sys
from pathlib import Path

import jax

from mdeq_jax.runtime.hosts import initialize_distributed
from mdeq_jax.training import train_and_evaluate
from tests.helpers.toy_language import toy_config

# Solves that are long enough for the rounding of float64, which depends on how a batch is split.
FIELDS = {
    "solver.forward.max_steps": 30,
    "solver.forward.tol": 1e-6,
    "solver.backward.max_steps": 30,
    "solver.backward.tol": 1e-6,
    "model.transformer.weight_norm": False,
    "model.transformer.dropout": 0.1,
    "eval.every_epochs": 1.0,
    "log.every_steps": 1,
}


def main(text: str, *arguments: str) -> None:
    runs = [argument.rsplit("=", 1) for argument in arguments if "=" in argument]
    if joins := [argument for argument in arguments if "=" not in argument]:
        initialize_distributed(joins[0], 2, int(joins[1]))
    jax.config.update("jax_enable_x64", True)
    for workdir, epochs in runs:
        config = toy_config(Path(text), **{**FIELDS, "train.epochs": float(epochs)})
        train_and_evaluate(config, workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
