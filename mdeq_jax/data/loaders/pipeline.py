"""Loaders: which examples make batch k, for which process, and how to go on after a stop."""

import collections
import dataclasses
import functools
import sys

import numpy as np
from absl import logging

from mdeq_jax.data.dataset import ORDER_STREAM, Dataset, Skipped, Split
from mdeq_jax.data.loaders.workers import map_steps


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of an epoch: a permutation of the examples, the same on every host."""
    order = np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(num_examples)
    order.flags.writeable = False  # it is shared by whoever asks again
    return order


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Which slice of each global batch is this process's."""

    batch_size: int
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size is {self.batch_size}, but it counts the examples of all processes "
                f"and must be a positive multiple of process_count = {self.process_count}."
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index is {self.process_index}, but must lie in [0, {self.process_count})."
            )

    def indices(self, step: int) -> np.ndarray:
        """Returns this process's part of [step * batch_size, (step + 1) * batch_size)."""
        local = self.batch_size // self.process_count
        return step * self.batch_size + self.process_index * local + np.arange(local)


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """Step number -> (batch, skipped); sent to the workers."""

    split: Split
    shard: _Shard
    seed: int

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        epoch, step = divmod(step, len(self.split) // self.shard.batch_size)
        order = epoch_order(len(self.split), self.seed, epoch)
        return self.split.make_batch(order[self.shard.indices(step)], (self.seed, epoch))


@dataclasses.dataclass(frozen=True)
class _EvalBatch:
    """Step number -> (batch with mask, skipped); sent to the workers."""

    split: Split
    shard: _Shard

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        indices = self.shard.indices(step)
        mask = (indices < len(self.split)).astype(np.float32)
        # Padding repeats the last example: real pixels, which no solver trips over.
        batch, skipped = self.split.make_batch(np.minimum(indices, len(self.split) - 1), (0, 0))
        mask[[position for position, _ in skipped]] = 0
        return {**batch, "mask": mask}, skipped


class _SkipReport:
    """Counts the examples that were left out, and says so the first time each is."""

    def __init__(self, name: str):
        self.counts = collections.Counter()
        self._name = name

    def add(self, skipped: list[Skipped]) -> None:
        for _, error in skipped:
            self.counts[error] += 1
            if self.counts[error] == 1:
                logging.warning("%s: skipped example %d: %s", self._name, len(self.counts), error)


def _workers_for(dataset: Dataset, split: Split, num_workers: int) -> int:
    if num_workers < 0:
        raise ValueError(
            f"config.data.num_workers is {num_workers}, but must be 0 (this process) or more."
        )
    if split.in_memory and num_workers:
        logging.info("%s is held in memory: its batches need no worker processes.", dataset.name)
        return 0
    return num_workers


class TrainLoader:
    """Endless batches of the training split, reshuffled each epoch.

    Global batch k is a slice of the order of epoch k // steps_per_epoch, and process p gets slice
    p of it. So the batches depend on (seed, k) alone: the number of processes and workers changes
    nothing, and the state is a step number. The num_train % batch_size examples that an epoch's
    order ends with are left out of that epoch; as each epoch has its own order, they are others
    each time.

    Attributes:
      steps_per_epoch: num_train // batch_size.
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
        """Creates a loader that stands at step 0.

        Args:
          dataset: from `load_dataset`.
          batch_size: over all processes.
          seed: of the order and of the transforms.
          process_index: which slice of each global batch is this process's.
          process_count: number of slices.
          num_workers: worker processes that make the batches; 0 is this one. A set held in memory
            does without. A script that asks for workers must keep to `if __name__ == "__main__"`.

        Raises:
          ValueError: a batch that the processes do not divide, or larger than the data set.
        """
        shard = _Shard(batch_size, process_index, process_count)
        if batch_size > dataset.num_train:
            raise ValueError(
                f"batch_size is {batch_size}, but {dataset.name} has only {dataset.num_train} "
                "training examples: lower config.train.batch_size."
            )
        self.steps_per_epoch = dataset.num_train // batch_size
        self._make_batch = _TrainBatch(dataset.train, shard, seed)
        self._num_workers = _workers_for(dataset, dataset.train, num_workers)
        self._report = _SkipReport(f"{dataset.name} (train)")
        self._step = 0
        self._batches = None
        self._identity = {
            "dataset": dataset.name,
            "num_train": dataset.num_train,
            "batch_size": batch_size,
            "seed": seed,
        }

    @property
    def skipped(self) -> collections.Counter:
        """How often each unusable example was met: {error: times}."""
        return self._report.counts

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns {"image": float32 [b, H, W, 3], "label": int32 [b, ...]}, b of this process."""
        if self._batches is None:
            steps = range(self._step, sys.maxsize)
            self._batches = map_steps(self._make_batch, steps, self._num_workers)
        try:
            batch, skipped = next(self._batches)
        except BaseException:
            self.close()  # so that another `next` tries again, and does not say that all is read
            raise
        self._report.add(skipped)
        self._step += 1
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
        """Ends the workers; the next `next` starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class EvalLoader:
    """Every evaluation example once, in order; the last batch is padded.

    Batches have an entry "mask", float32 [b]: 1, or 0 for padding and for skipped examples. Every
    process sees the same number of batches, so that they can be added over devices. Each `iter`
    starts anew.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ):
        """Creates a loader. Arguments and errors as `TrainLoader`'s."""
        self._make_batch = _EvalBatch(
            dataset.eval, _Shard(batch_size, process_index, process_count)
        )
        self._num_steps = -(-dataset.num_eval // batch_size)
        self._num_workers = _workers_for(dataset, dataset.eval, num_workers)
        self._report = _SkipReport(f"{dataset.name} (evaluation)")

    @property
    def skipped(self) -> collections.Counter:
        """How often each unusable example was met: {error: times}."""
        return self._report.counts

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self):
        for batch, skipped in map_steps(
            self._make_batch, range(self._num_steps), min(self._num_workers, self._num_steps)
        ):
            self._report.add(skipped)
            yield batch


def shard_batch(batch: dict[str, np.ndarray], num_devices: int) -> dict[str, np.ndarray]:
    """Reshapes every entry [B, ...] to [num_devices, B / num_devices, ...].

    Raises:
      ValueError: B is not divisible by `num_devices`.
    """

    def shard(x):
        if x.shape[0] % num_devices:
            raise ValueError(
                f"A batch of {x.shape[0]} examples cannot be split over {num_devices} devices: "
                "choose a batch size that is a multiple of the number of devices."
            )
        return x.reshape(num_devices, x.shape[0] // num_devices, *x.shape[1:])

    return {name: shard(x) for name, x in batch.items()}
