"""Reading what a run has left in its work directory."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.engine.evaluation import load_trained


def read_metrics(workdir: Path) -> list[dict]:
    """All lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_evaluations(workdir: Path) -> list[dict]:
    """Its lines of evaluations."""
    return [line for line in read_metrics(workdir) if "eval/loss" in line]


def final_variables(config: ConfigDict, workdir: Path) -> dict:
    """The variables of the newest checkpoint."""
    return load_trained(config, workdir, "latest").variables
