"""Runs a function of the step number in worker processes, in order, with Grain."""

import signal
from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np
from absl import logging

from mdeq_jax.data.dataset import Split

Extra = TypeVar("Extra")
_DIED = (
    "A data worker ended early. Exit code -9: it was killed, usually because memory ran out: "
    "lower config.data.num_workers. Exit code -7: shared memory is full: give the container more "
    "(docker run --shm-size=8g). config.data.num_workers=0 makes the batches in this process."
)


def usable_workers(num_workers: int, split: Split, name: str) -> int:
    """Returns the number of worker processes to start for a split: 0 if it is in memory.

    Args:
        num_workers: `config.data.num_workers`.
        split: whose batches are made.
        name: of the data set, for the log.

    Raises:
        ValueError: a negative number.
    """
    if num_workers < 0:
        raise ValueError(
            f"config.data.num_workers is {num_workers}, but must be 0 (this process) or more."
        )
    if split.in_memory and num_workers:
        logging.info("%s is held in memory: its batches need no worker processes.", name)
        return 0
    return num_workers


def _init_worker(index: int, count: int) -> None:
    del index, count
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training loop handles Ctrl-C
    cv2.setNumThreads(0)  # one thread a worker: the workers already use the cores


def map_steps(
    make: Callable[[int], tuple[dict[str, np.ndarray], Extra]], steps: range, num_workers: int
) -> Generator[tuple[dict[str, np.ndarray], Extra]]:
    """Yields `make(step)` for each step, in order.

    Args:
        make: step -> (batch, anything else); picklable if `num_workers` > 0.
        steps: consecutive numbers.
        num_workers: processes that share the steps; 0 calls `make` in this process. The results do
            not depend on it.

    Raises:
        RuntimeError: a worker died.
        Exception: whatever `make` raised in a worker.
    """
    if num_workers == 0:
        yield from map(make, steps)
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its flags, even outside an absl app
        flags.FLAGS.mark_as_parsed()
    dataset = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(make)
        # A step is a whole batch: two of them ahead in each worker are enough.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1),
            worker_init_fn=_init_worker,
        )
    )
    iterator = iter(dataset)
    try:
        for batch, extra in iterator:
            # Copied, because the arrays lie in shared memory that the workers reuse.
            yield {name: np.array(array, subok=False) for name, array in batch.items()}, extra
    except RuntimeError as error:
        error.add_note(_DIED)
        raise
    finally:
        iterator.close()
