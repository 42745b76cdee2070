"""`train.py` and `eval.py` as a person calls them."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.tiny import SINGLE_SCALE


@pytest.fixture(scope="module")
def one_epoch(run_script, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    result = run_script("train.py", workdir, **{**SINGLE_SCALE, "log.every_steps": 5})
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_train_prints_what_a_person_wants_to_know(one_epoch):
    _, out = one_epoch
    assert re.search(r"digits: [\d,]+ parameters, 1,437 training and 360 evaluation images", out)
    assert re.search(
        r"train\s+5/11  loss [\d.]+  lr [\d.e-]+  NFE [\d.]+ \+ [\d.]+  residual .*worst .*"
        r"not converged\), backward .*gradient \S+ \(worst \S+\)  \d+ images/s  waiting \d+ %",
        out,
    )
    assert "Compiling the training step: about " in out or "Preparing the training step" in out
    assert re.search(r"eval\s+11/11  accuracy .* NFE .* residual .*", out)
    assert re.search(r"Done: accuracy [\d.]+ %  loss [\d.]+  NFE 6.0  residual ", out)


def test_eval_on_another_split(one_epoch, run_script):
    command = run_script.command("eval.py", one_epoch[0], **SINGLE_SCALE)
    result = subprocess.run(
        [*command, "--split=train"],
        env=run_script.environment(),
        cwd=run_script.root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert '"eval/examples": 1437' in result.stdout, result.stderr


def test_eval_on_four_devices_with_an_override(one_epoch, run_script):
    workdir, _ = one_epoch
    result = run_script(
        "eval.py", workdir, devices=4, **{**SINGLE_SCALE, "solver.forward.max_steps": 3}
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads(result.stdout[result.stdout.index("{") :])
    assert metrics["eval/nfe"] == 4 and metrics["eval/examples"] == 360 and metrics["step"] == 11


@pytest.mark.slow
def test_sigterm_and_the_same_command_again(run_script, tmp_path):
    command = run_script.command(
        "train.py", tmp_path, **{**SINGLE_SCALE, "train.epochs": 60.0, "log.every_steps": 1}
    )
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
    again = run_script("train.py", tmp_path, **{**SINGLE_SCALE, "train.epochs": stopped / 11 + 0.2})
    assert again.returncode == 0, again.stderr
    assert f"Resuming from step {stopped} of" in again.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            {"train.batch_size": 130},
            r"ValueError: train.batch_size=130 must be a multiple",
        ),
        (
            {"solver.forward.max_step": 5},
            r"\Atrain.py: .*no field .* Did you mean --config.solver.forward.max_steps=5\? .*\n\Z",
        ),
        ({"model.channels": "(8,9)"}, r"ValueError: .*multiple of model.num_groups=4"),
    ],
)
def test_bad_flags_end_in_a_line(run_script, tmp_path, flag, message):
    result = run_script("train.py", tmp_path, devices=4, **flag)
    assert result.returncode != 0
    assert re.search(message, result.stderr)
    assert len(result.stderr.strip().splitlines()[-1]) < 500
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predict=a", "--sweep_steps=1"], "At most one of (predict, save_predictions, sweep"),
        (["--sweep_steps=1,two"], "--sweep_steps=['1', 'two']: must be whole numbers, e.g. 1,2,5"),
    ],
)
def test_flags_of_eval_that_cannot_work(run_script, tmp_path, flags, message):
    result = subprocess.run(
        [*run_script.command("eval.py", tmp_path), *flags],
        env=run_script.environment(),
        cwd=run_script.root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0 and message in result.stderr


@pytest.mark.parametrize("script", ["eval.py", "convert_torch_weights.py", "-m mdeq_jax.train"])
def test_help_lists_flags_and_configs(run_script, script):
    result = subprocess.run(
        [sys.executable, *script.split(), "--help"],
        env=run_script.environment(),
        cwd=run_script.root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "configs/digits.py  " in result.stdout and "--config: Config" in result.stdout
    assert "python " in result.stdout.partition("flags:")[0]  # the docstring of the script
