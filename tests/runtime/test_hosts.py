"""The same training on one device, on four, and on two processes with two devices each."""

import json
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mdeq_jax.engine.variables import save_variables
from mdeq_jax.models import build_model
from mdeq_jax.runtime import hosts
from tests.helpers.tiny import SINGLE_SCALE

pytestmark = pytest.mark.slow

# Two epochs, 22 steps. A truncated backward solve: an exact one of a network that has not been
# trained is nearly singular for a sample now and then, which turns rounding into other gradients.
FIELDS = {
    **SINGLE_SCALE,
    "train.epochs": 2.0,
    "train.optimizer": "sgd",
    "train.learning_rate": 3e-4,
    "model.dropout": 0.1,
    "solver.backward.name": "fixed_point_iteration",
    "solver.backward.tau": 0.5,
    "solver.backward.max_steps": 4,
    "log.every_steps": 1,
    "eval.every_epochs": 2.0,
    "checkpoint.every_epochs": 2.0,
}


def calm_network(config, workdir):
    """A work directory whose network is not as sensitive as a freshly initialised one.

    Its convolution kernels are of a size at which batch norms do not amplify, and its cell's norms
    have biases that outweigh their scales, so that the cell contracts.
    """
    variables = build_model(config).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng, calm = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(jax.device_get(variables)).items():
        if path[-1] == "kernel" and leaf.ndim == 4:
            leaf = 30 * leaf
        if path[1] == "cell" and path[-1] == "scale":
            leaf = 0.3 * leaf
        if path[1] == "cell" and path[-1] == "bias":
            leaf = rng.normal(size=leaf.shape).astype(np.float32)
        calm[path] = leaf
    save_variables(unflatten_dict(calm), config, workdir)


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(run_script, workdir):
    join = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            [*run_script.command("train.py", workdir, **FIELDS), *join, f"--process_id={i}"],
            env=run_script.environment(devices=2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, results):
        assert process.returncode == 0, err
    return [out for out, _ in results]


@pytest.fixture(scope="module")
def runs(run_script, tiny_config, tmp_path_factory):
    """Work directories by kind, and what the two processes printed."""
    workdirs = {kind: tmp_path_factory.mktemp(kind) for kind in ("one", "four", "hosts")}
    for workdir in workdirs.values():
        calm_network(tiny_config({**SINGLE_SCALE, "model.dropout": 0.1}), workdir)
    for kind, devices in (("one", 1), ("four", 4)):
        result = run_script("train.py", workdirs[kind], devices=devices, **FIELDS)
        assert result.returncode == 0, result.stderr
        assert f"on {devices} cpu device(s)" in result.stdout
    return workdirs, two_processes(run_script, workdirs["hosts"])


def test_the_same_losses(runs):
    workdirs, _ = runs
    one = losses(workdirs["one"])
    assert len(one) == 22 and len(set(one)) == 22
    np.testing.assert_allclose(losses(workdirs["four"]), one, rtol=1e-4)
    np.testing.assert_allclose(losses(workdirs["hosts"]), one, rtol=1e-4)


def test_the_first_process_alone_prints_and_writes(runs):
    workdirs, (first, second) = runs
    assert "on 4 cpu device(s) of 2 hosts" in first
    assert "Done: accuracy" in first and "digits" not in second and "Done" not in second
    last = json.loads((workdirs["hosts"] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 22 and last["eval/examples"] == 360


def test_evaluation_over_hosts_counts_every_image_once(runs):
    workdirs, _ = runs
    one, several = (
        json.loads((workdirs[kind] / "metrics.jsonl").read_text().splitlines()[-1])
        for kind in ("one", "hosts")
    )
    np.testing.assert_allclose(several["eval/loss"], one["eval/loss"], rtol=1e-3)
    np.testing.assert_allclose(several["eval/steps"], one["eval/steps"], rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1", 2, None), "belong together"),
        (("10.0.0.1:1", 2, 2), r"process_id must lie in \[0, num_processes\); got 2 of 2"),
        (("10.0.0.1", 2, 0), "must be HOST:PORT"),
    ],
)
def test_bad_ways_to_join(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.initialize_distributed(*arguments)


def test_clusters_are_recognised():
    assert not hosts.started_by_cluster({})
    assert not hosts.started_by_cluster({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"})  # no srun
    srun = {"SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_NUM_TASKS": "2"}
    assert hosts.started_by_cluster(srun)
    assert not hosts.started_by_cluster({**srun, "SLURM_STEP_NUM_TASKS": "1"})
    assert hosts.started_by_cluster({"OMPI_COMM_WORLD_SIZE": "2"})
    assert hosts.started_by_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    assert hosts.started_by_cluster(kubernetes)
