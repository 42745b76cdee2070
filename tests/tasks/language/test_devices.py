"""A run goes on with other numbers of devices and hosts, in the middle of a pass."""

import shutil
import socket
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mdeq_jax.training import train_and_evaluate
from tests.helpers.workdirs import read_evaluations, read_metrics

PROGRAM = "tests.helpers.language_runs"
STOPS = (0.2, 0.4, 0.6)  # epochs of 37 steps


def start(run_script, text, devices, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM, str(text), *map(str, arguments)],
        env=run_script.environment(devices=devices),
        cwd=run_script.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """What the processes print; all must succeed."""
    results = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, results):
        assert process.returncode == 0, err
    return [out for out, _ in results]


@pytest.fixture(scope="module")
def first_part(run_script, text, tmp_path_factory):
    """Work directories of a whole run and of its first part, both on one device."""
    whole, part = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("part")
    finish(start(run_script, text, 1, f"{whole}={STOPS[-1]}", f"{part}={STOPS[0]}"))
    return whole, part


def carry_of(workdir):
    """The arrays that the newest checkpoint carries to the next batch."""
    step = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    item = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "carry")
    return [np.asarray(item[name]) for name in sorted(item)]


def losses_of(workdir):
    """Loss by step, except where a line is of an evaluation and of all steps before it."""
    lines = [line for line in read_metrics(workdir) if "eval/loss" not in line]
    return {line["step"]: line["train/loss"] for line in lines}


def assert_the_same_run(workdir, whole):
    losses, expected = losses_of(workdir), losses_of(whole)
    assert expected.keys() - losses.keys() == {7, 15} - losses.keys() and len(expected) == 21
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-9, err_msg=f"step {step}")
    ours, theirs = read_evaluations(workdir)[-1], read_evaluations(whole)[-1]
    np.testing.assert_allclose(ours["eval/loss"], theirs["eval/loss"], rtol=1e-9)
    assert ours["eval/examples"] == theirs["eval/examples"]
    for carried, reference in zip(carry_of(workdir), carry_of(whole), strict=True):
        assert len(reference) == 8 and np.any(reference)
        np.testing.assert_allclose(carried, reference, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_one_device_then_two_then_four(run_script, text, first_part, tmp_path):
    whole, part = first_part
    workdir = shutil.copytree(part, tmp_path / "chain")
    for devices, epochs in ((2, STOPS[1]), (4, STOPS[2])):
        (printed,) = finish(start(run_script, text, devices, f"{workdir}={epochs}"))
        assert f"on {devices} cpu device(s)" in printed and "Resuming from step" in printed
    assert_the_same_run(workdir, whole)


@pytest.mark.slow
def test_one_device_then_two_hosts(run_script, text, first_part, tmp_path):
    """Each host reads its own columns, and holds their memory only."""
    whole, part = first_part
    workdir = shutil.copytree(part, tmp_path / "hosts")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    run = f"{workdir}={STOPS[-1]}"
    first, second = finish(*(start(run_script, text, 2, address, i, run) for i in range(2)))
    assert "on 4 cpu device(s) of 2 hosts" in first and "Resuming from step 7" in first
    assert "Done" in first and "Done" not in second
    assert_the_same_run(workdir, whole)


@pytest.mark.parametrize("field", ["train.batch_size", "eval.batch_size"])
def test_fewer_columns_than_devices(language_config, tmp_path, monkeypatch, field):
    monkeypatch.setattr("jax.device_count", lambda: 4)
    config = language_config(**{"eval.batch_size": 8, field: 2})
    message = rf"{field}=2 must be a multiple of the 4 devices .*: use 4 or 8"
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(config, tmp_path)
    assert not list(tmp_path.iterdir())
