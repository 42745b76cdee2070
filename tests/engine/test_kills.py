"""SIGKILL at random moments, and in the middle of saves: nothing is lost, nothing is different."""

import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest

from configs import digits
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.models import build_model
from tests.helpers.killed_runs import FIELDS
from tests.helpers.tiny import override

pytestmark = pytest.mark.slow

KILLS = 10


@pytest.fixture(scope="module")
def runs(run_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", str(folder), str(KILLS)],
        env={**run_script.environment(), "PYTHONPATH": str(run_script.root)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_it_was_killed_that_often_and_while_saving(runs):
    killed, half_written = map(int, re.search(r"killed (\d+) half_written (\d+)", runs[1]).groups())
    assert killed == KILLS
    assert half_written >= 3


def test_the_same_losses_bit_for_bit(runs):
    def losses(kind):
        lines = map(json.loads, (runs[0] / kind / "metrics.jsonl").read_text().splitlines())
        # That of an evaluation is the mean over what its process has trained.
        return [(line["step"], line.get("eval/loss", line["train/loss"])) for line in lines]

    assert len(losses("whole")) == 33
    assert losses("killed") == losses("whole")


def test_the_same_weights_bit_for_bit(runs):
    model = build_model(override(digits.get_config(), FIELDS))
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def weights(kind):
        with Checkpoints(runs[0] / kind, write=False) as checkpoints:
            return checkpoints.restore_variables(like)

    (killed, step), (whole, _) = weights("killed"), weights("whole")
    assert step == 33
    chex.assert_trees_all_equal(killed, whole)
