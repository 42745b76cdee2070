"""Runs a function of the step number in worker processes, in order, by Grain."""

import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

Extra = TypeVar("Extra")
_DIED = (
    "A data worker ended before its time. Exit code -9: killed, most often for want of memory: "
    "lower config.data.num_workers. Exit code -7: shared memory is full: give the container more "
    "(docker run --shm-size=8g). config.data.num_workers=0 makes the batches in this process."
)


def _init_worker(index: int, count: int) -> None:
    del index, count
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which ends the workers
    cv2.setNumThreads(0)  # there are as many workers as there are cores to use


def map_steps(
    make: Callable[[int], tuple[dict[str, np.ndarray], Extra]], steps: range, num_workers: int
) -> Iterator[tuple[dict[str, np.ndarray], Extra]]:
    """Yields `make(step)` for each step, in order.

    Args:
      make: step -> (batch, anything else); picklable where `num_workers` > 0.
      steps: consecutive numbers.
      num_workers: processes that share the steps; 0 calls `make` here. What is yielded does not
        depend on it.

    Raises:
      RuntimeError: a worker died.
      Exception: what `make` raised in a worker.
    """
    if num_workers == 0:
        yield from map(make, steps)
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also where no absl app runs
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
            # The arrays lie in shared memory, which is to be free again soon.
            yield {name: np.array(array, subok=False) for name, array in batch.items()}, extra
    except RuntimeError as error:
        error.add_note(_DIED)
        raise
    finally:
        iterator.close()
