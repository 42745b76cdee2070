"""Work in a thread, one job after another, whose results are waited for later."""

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any, Self


class InBackground:
    """Runs jobs in a thread, in their order, and holds their results.

    Use it as a context manager: leaving waits for the job that is running, and drops the others.
    """

    def __init__(self, jobs: Mapping[Hashable, Callable[[], Any]]):
        """Starts the thread; without jobs there is none.

        Args:
            jobs: functions without arguments, by key.
        """
        self._futures = {key: Future() for key in jobs}
        self._thread = threading.Thread(
            target=self._run, args=(dict(jobs),), name="in-background", daemon=True
        )
        if jobs:
            self._thread.start()

    def _run(self, jobs):
        for key, job in jobs.items():
            future = self._futures[key]
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._futures

    def result(self, key: Hashable) -> Any:
        """What a job returned, once it has; raises what the job raised."""
        return self._futures[key].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        for future in self._futures.values():
            future.cancel()
        if self._futures:
            self._thread.join()
