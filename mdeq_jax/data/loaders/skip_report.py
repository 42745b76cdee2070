"""Reports of the examples that were left out."""

import collections

from absl import logging

from mdeq_jax.data.dataset import Skipped


class SkipReport:
    """Counts the examples that were left out, and logs each of them once.

    Attributes:
        counts: how often each example was left out: {error: times}.
    """

    def __init__(self, name: str):
        """Creates an empty report; `name` is the data set and split in log lines."""
        self.counts = collections.Counter()
        self._name = name

    def add(self, skipped: list[Skipped]) -> None:
        """Counts the skipped examples of a batch."""
        for _, error in skipped:
            self.counts[error] += 1
            if self.counts[error] == 1:
                logging.warning("%s: skipped example %d: %s", self._name, len(self.counts), error)
