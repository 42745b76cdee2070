"""The time that finished samples of a batch wait for the slowest one."""

import numpy as np

from mdeq_jax.solvers import Status

# Share of the evaluations of f that must be idle, as a slot's step costs a little more.
LEAST_IDLE = 0.15


class IdleTime:
    """How much of the time of batches is spent on samples that are finished."""

    def __init__(self):
        self._seconds, self._shares = [], []

    def add(self, seconds: float, rows: dict) -> None:
        """Counts a batch.

        Args:
            seconds: that its call took, the first one with its compilation.
            rows: arrays `[B]` on the host: "status", "steps" and "nfe" of the solves, and "mask".
        """
        needed = np.where(rows["status"] == Status.CONVERGED, rows["steps"] + 1, rows["nfe"])
        self._seconds.append(seconds)
        self._shares.append(1 - np.sum(needed * rows["mask"]) / np.sum(rows["nfe"]))

    def is_worth_compiling(self, num_batches: int) -> bool:
        """Whether an evaluation of so many batches is idle for longer than a program compiles."""
        if len(self._seconds) < 2:
            return False
        batch, share = np.median(self._seconds[1:]), np.mean(self._shares)
        compiling = self._seconds[0] - batch
        return bool(share > LEAST_IDLE and share * batch * num_batches > compiling)
