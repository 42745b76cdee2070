"""The time that finished samples of a batch wait for the slowest one."""

import numpy as np

from mdeq_jax.solvers import Status

# On slots, an evaluation of f takes so many times as long for each sample as in a batch. Measured:
# 1.0 to 1.25 (docs/performance_log.md).
SLOT_COST = 1.2


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
        self._shares.append(np.sum(needed * rows["mask"]) / np.sum(rows["nfe"]))

    def is_worth_compiling(self, batches_left: int) -> bool:
        """Whether slots save more of an evaluation than their program takes to compile.

        Args:
            batches_left: of this evaluation. Those of earlier ones may be counted too.
        """
        if len(self._seconds) < 2:
            return False
        batch, needed = np.median(self._seconds[1:]), np.mean(self._shares)
        compiling = self._seconds[0] - batch
        saved = (1 - SLOT_COST * needed) * batch * batches_left
        return bool(saved > max(compiling, 0))
