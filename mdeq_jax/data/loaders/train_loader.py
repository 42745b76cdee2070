"""The loader of the training split, which resumes exactly."""

import collections
import sys
from typing import Self

import numpy as np

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.loaders.sampling import Shard, train_batches
from mdeq_jax.data.loaders.skip_report import SkipReport
from mdeq_jax.data.loaders.workers import map_steps, usable_workers


class TrainLoader:
    """Endless batches of the training split, reshuffled each epoch or in the split's own order.

    Global batch k is a slice of the order of epoch k // steps_per_epoch. Process p makes slice p of
    that batch. The batches therefore depend on (seed, k) alone, not on the number of processes and
    workers, and the state is a step number.

    An epoch omits the last num_train % batch_size examples of its order. Each epoch has another
    order, so it omits other examples.

    Attributes:
        steps_per_epoch: num_train // batch_size, or the segments of a split that is read in order.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ):
        """Creates a loader at step 0.

        Args:
            dataset: from `load_dataset`.
            batch_size: over all processes.
            seed: of the order and of the transforms.
            process_index: which slice of each global batch this process makes.
            process_count: number of slices.
            num_workers: worker processes that make the batches; 0 makes them in this process, and
                so does a data set in memory. A script that asks for workers must guard its main
                program with `if __name__ == "__main__"`.

        Raises:
            ValueError: the number of processes does not divide the batch size, or a batch is larger
                than the data set.
        """
        shard = Shard(batch_size, process_index, process_count)
        self._make_batch = train_batches(dataset.train, shard, seed)
        if batch_size > dataset.num_train:
            raise ValueError(
                f"batch_size is {batch_size}, but {dataset.name} has only {dataset.num_train} "
                "training examples: lower config.train.batch_size."
            )
        self.steps_per_epoch = self._make_batch.num_steps
        self._num_workers = usable_workers(num_workers, dataset.train, dataset.name)
        self._report = SkipReport(f"{dataset.name} (train)")
        self._step = 0
        self._batches = None
        self._identity = {
            "dataset": dataset.name,
            "num_train": dataset.num_train,
            "batch_size": batch_size,
            "seed": seed,
            **self._make_batch.identity,
        }

    @property
    def skipped(self) -> collections.Counter:
        """How often each unusable example was met: {error: times}."""
        return self._report.counts

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch: {name: `[b, ...]`}, with b the examples of this process."""
        if self._batches is None:
            steps = range(self._step, sys.maxsize)
            self._batches = map_steps(self._make_batch, steps, self._num_workers)
        try:
            batch, skipped = next(self._batches)
        except BaseException:
            self.close()  # the next call tries again, instead of finding an exhausted generator
            raise
        self._report.add(skipped)
        self._step += 1
        return batch

    def batch_shapes(self) -> dict[str, np.ndarray]:
        """Returns arrays of the shapes and types of every batch; the next one stays the next."""
        batch, _ = self._make_batch(0)
        return batch

    def get_state(self) -> dict:
        """Returns a JSON-serialisable dict, the same on every process."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict) -> None:
        """Makes the next batch the one that followed when `state` was taken.

        Raises:
            ValueError: the state is of another data set, batch size or seed.
        """
        for field, value in self._identity.items():
            if state.get(field) != value:
                raise ValueError(
                    f"The saved data state has {field} = {state.get(field)!r}, this run has "
                    f"{value!r}: continue with the same settings, or start in a new workdir."
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the workers; the next batch starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
