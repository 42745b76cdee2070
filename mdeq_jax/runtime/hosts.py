"""Several hosts as one run: joining them, and exchanging arrays between them."""

import os
import sys
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from mdeq_jax.tree import PyTree


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of a run; call it before anything else touches a device.

    With all three arguments, it joins the run that they describe. With none, it joins if SLURM
    (`srun`), Open MPI, Kubernetes or a cloud TPU pod started several processes, and else does
    nothing.

    Args:
        coordinator: "HOST:PORT" of process 0, the same for all.
        num_processes: of the run.
        process_id: of this one, from 0.

    Raises:
        ValueError: only some of the three are given, or they do not fit each other.
    """
    if coordinator is None and num_processes is None and process_id is None:
        if started_by_cluster(os.environ):
            jax.distributed.initialize()
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            "coordinator, num_processes and process_id belong together; got "
            f"{coordinator!r}, {num_processes} and {process_id}. Give all three on every host, or "
            "none under SLURM, Open MPI, Kubernetes or on a cloud pod."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must lie in [0, num_processes); got {process_id} of {num_processes}."
        )
    if ":" not in coordinator:
        raise ValueError(f"coordinator must be HOST:PORT, e.g. 10.0.0.1:1234; got {coordinator!r}.")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def started_by_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a cluster set these environment variables, for one process among several."""

    def count(name):
        value = environment.get(name, "")
        return int(value) if value.isdigit() else 0

    return (
        ("SLURM_STEP_NODELIST" in environment and count("SLURM_STEP_NUM_TASKS") > 1)
        or count("OMPI_COMM_WORLD_SIZE") > 1
        or ("KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )


def is_primary() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def gather(rows: PyTree) -> PyTree:
    """`[N, ...]` of every process, joined along the first axis in the order of the processes.

    Every process must call it with arrays of the same shapes.
    """
    if jax.process_count() == 1:
        return rows
    joined = multihost_utils.process_allgather(rows)
    return jax.tree.map(lambda value: np.concatenate(list(value)), joined)


def own_rows(rows: PyTree) -> PyTree:
    """This process's part of what `gather` returned."""

    def part(x):
        count = len(x) // jax.process_count()
        return x[jax.process_index() * count :][:count]

    return jax.tree.map(part, rows)


def wait_for_all(name: str) -> None:
    """Returns once every process has made this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def log(text: str) -> None:
    """Prints a line by the first process only, above a progress bar if there is one."""
    if is_primary():
        tqdm.write(text)
        sys.stdout.flush()
