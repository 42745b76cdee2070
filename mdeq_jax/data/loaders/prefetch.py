"""A thread that makes the next batches and puts them on the devices while a step runs."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np


class Prefetcher:
    """Iterates over `(to_devices(batch), state)`, `size` batches ahead of the consumer.

    `state` is the loader's state after that batch. A checkpoint that stores it resumes after the
    step that was made, however far ahead this thread is. It is None for a loader without
    `get_state`.

    `next` raises what the loader or `to_devices` raised. Use a Prefetcher as a context manager, or
    call `close`.

    Attributes:
        waited_s: seconds that the consumer has waited in `next`.
    """

    def __init__(
        self,
        loader: Iterable[dict[str, np.ndarray]],
        to_devices: Callable[[dict[str, np.ndarray]], Any],
        size: int = 2,
    ):
        """Starts the thread.

        Args:
            loader: an iterable of batches, finite or not.
            to_devices: batch -> what the consumer gets, e.g. the batch split over the devices.
            size: number of batches that are kept ready.

        Raises:
            ValueError: `size` is under 1.
        """
        if size < 1:
            raise ValueError(f"size is {size}, but at least 1 batch must fit.")
        self.waited_s = 0.0
        self._queue = queue.Queue(maxsize=size)
        self._stop = threading.Event()
        self._ended = None  # the exception that `next` raises from now on
        self._thread = threading.Thread(
            target=self._fill, args=(loader, to_devices), name="prefetch", daemon=True
        )
        self._thread.start()

    def _fill(self, loader, to_devices):
        get_state = loader.get_state if hasattr(loader, "get_state") else lambda: None
        try:
            for batch in loader:
                if not self._put((to_devices(batch), get_state())):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, dict | None]:
        if self._stop.is_set():
            raise ValueError("next() of a Prefetcher that is closed.")
        if self._ended is None:
            start = time.perf_counter()
            item = self._queue.get()
            self.waited_s += time.perf_counter() - start
            if not isinstance(item, BaseException):
                return item
            self._ended = item
        raise self._ended

    def close(self) -> None:
        """Ends the thread. Calling it again has no effect."""
        self._stop.set()
        self._thread.join(timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()
