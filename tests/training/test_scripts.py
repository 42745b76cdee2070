"""`train.py` and `eval.py` as a person calls them, on one device and on four."""

import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


# An evaluation after every second step.
EVERY_SECOND_STEP = {
    "eval.every_epochs": 0.19,
    "train.pretrain_steps": 4,
}


@pytest.fixture(scope="module")
def one_device(run_script, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    result = run_script("train.py", workdir, **EVERY_SECOND_STEP)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_train_prints_what_a_person_wants_to_know(one_device):
    _, out = one_device
    assert re.search(r"digits: [\d,]+ parameters, 1,437 training and 360 evaluation images", out)
    assert re.search(r"step\s+10/11 .*accuracy .* NFE .* residual .* backward NFE", out)
    assert re.search(r"Done: accuracy [\d.]+ %  loss [\d.]+  NFE 6.0  residual ", out)


def test_four_devices_give_the_same_losses(one_device, run_script, tmp_path):
    workdir, _ = one_device
    result = run_script("train.py", tmp_path, devices=4, **EVERY_SECOND_STEP)
    assert result.returncode == 0, result.stderr
    assert "on 4 cpu device(s)" in result.stdout
    assert len(losses(workdir)) == 6
    ours, theirs = losses(tmp_path), losses(workdir)
    # Before the first update has an effect, to rounding. After it rounding switches a ReLU here and
    # there, which a freshly initialised network amplifies: only float64 can tell (test_devices.py).
    np.testing.assert_allclose(ours[:1], theirs[:1], rtol=1e-4)
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)


def test_eval_on_four_devices_with_an_override(one_device, run_script):
    workdir, _ = one_device
    result = run_script("eval.py", workdir, devices=4, **{"solver.forward.max_steps": 3})
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout[result.stdout.index("{") :])
    assert figures["eval/nfe"] == 4 and figures["eval/examples"] == 360 and figures["step"] == 11


def test_sigterm_and_the_same_command_again(run_script, tmp_path):
    command = run_script.command("train.py", tmp_path, **{"train.epochs": 60.0})
    process = subprocess.Popen(
        command,
        env=run_script.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.time() + 240
    while not (metrics.exists() and metrics.read_text()) and time.time() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = int(re.search(r"Stopped by SIGTERM at step (\d+)", err).group(1))
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    again = run_script("train.py", tmp_path, **{"train.epochs": stopped / 11 + 0.2})
    assert again.returncode == 0, again.stderr
    assert f"Going on from step {stopped} of" in again.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            {"train.batch_size": 130},
            r"ValueError: train.batch_size=130 must be a multiple",
        ),
        ({"solver.forward.max_step": 5}, r"max_step"),
        ({"model.channels": "(8,9)"}, r"ValueError: .*multiple of model.num_groups=4"),
    ],
)
def test_bad_flags_end_in_a_line(run_script, tmp_path, flag, message):
    result = run_script("train.py", tmp_path, devices=4, **flag)
    assert result.returncode != 0
    assert re.search(message, result.stderr)
    assert len(result.stderr.strip().splitlines()[-1]) < 500
    assert not (tmp_path / "checkpoints").exists()
