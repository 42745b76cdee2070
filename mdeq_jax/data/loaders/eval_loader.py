"""The loader of the evaluation split."""

import collections
from collections.abc import Iterator

import numpy as np

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.loaders.sampling import Shard, eval_batches
from mdeq_jax.data.loaders.skip_report import SkipReport
from mdeq_jax.data.loaders.workers import map_steps, usable_workers


class EvalLoader:
    """Every evaluation example once, in order; the last batch is padded.

    A batch has the entry "mask", float32 `[b]`: 1 for an example, 0 for padding and for a skipped
    example. Every process sees the same number of batches, so collectives over devices match.
    Each `iter` starts again. A split that is read in order makes its batches itself.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ):
        """Creates a loader. Arguments and errors are those of `TrainLoader`."""
        shard = Shard(batch_size, process_index, process_count)
        self._make_batch = eval_batches(dataset.eval, shard)
        self._num_steps = self._make_batch.num_steps
        self._num_workers = usable_workers(num_workers, dataset.eval, dataset.name)
        self._report = SkipReport(f"{dataset.name} (evaluation)")

    @property
    def skipped(self) -> collections.Counter:
        """How often each unusable example was met: {error: times}."""
        return self._report.counts

    def batch_shapes(self) -> dict[str, np.ndarray]:
        """Returns arrays of the shapes and types of every batch."""
        batch, _ = self._make_batch(0)
        return batch

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        workers = min(self._num_workers, self._num_steps)
        for batch, skipped in map_steps(self._make_batch, range(self._num_steps), workers):
            self._report.add(skipped)
            yield batch
