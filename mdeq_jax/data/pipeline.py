"""Loaders: which examples make batch k, for which process, and how to go on after a stop."""

import functools

import numpy as np

from mdeq_jax.data.dataset import ORDER_STREAM, Dataset


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of an epoch: a permutation of the examples, the same on every host."""
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(num_examples)


def _check_sharding(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, but it counts the examples of all processes and must be "
            f"a positive multiple of process_count = {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}, but must lie in [0, {process_count}).")


class TrainLoader:
    """Endless batches of the training split, reshuffled each epoch.

    Global batch k is a slice of the order of epoch k // steps_per_epoch, and process p gets slice
    p of it. So the batches depend on (seed, k) alone: the number of processes and workers changes
    nothing, and the state is a step number. The num_train % batch_size examples that an epoch's
    order ends with are left out of that epoch; as each epoch has its own order, they are others
    each time.
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
          num_workers: processes that make the batches; 0 is this one.

        Raises:
          ValueError: a batch that the processes do not divide, or larger than the data set.
        """
        _check_sharding(batch_size, process_index, process_count)
        if batch_size > dataset.num_train:
            raise ValueError(
                f"batch_size is {batch_size}, but {dataset.name} has only {dataset.num_train} "
                "training examples: lower config.train.batch_size."
            )
        self.steps_per_epoch = dataset.num_train // batch_size
        self._split = dataset.train
        self._local_batch = batch_size // process_count
        self._offset = process_index * self._local_batch
        self._step = 0
        self._identity = {
            "dataset": dataset.name,
            "num_train": dataset.num_train,
            "batch_size": batch_size,
            "seed": seed,
        }
        self._order = functools.lru_cache(maxsize=1)(
            functools.partial(epoch_order, dataset.num_train, seed)
        )

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns {"image": float32 [b, H, W, 3], "label": int32 [b, ...]}, b of this process."""
        epoch, step = divmod(self._step, self.steps_per_epoch)
        start = step * self._identity["batch_size"] + self._offset
        indices = self._order(epoch)[start : start + self._local_batch]
        batch = self._split.make_batch(indices, (self._identity["seed"], epoch))
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
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the workers."""


class EvalLoader:
    """Every evaluation example once, in order; the last batch is padded.

    Batches have an entry "mask", float32 [b]: 1, or 0 for padding. Every process sees the same
    number of batches, so that they can be added over devices.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, process_index: int = 0, process_count: int = 1
    ):
        """Creates a loader; each `iter` of it starts anew. Arguments as `TrainLoader`'s."""
        _check_sharding(batch_size, process_index, process_count)
        self._split = dataset.eval
        self._batch_size = batch_size
        self._local_batch = batch_size // process_count
        self._offset = process_index * self._local_batch

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self):
        for step in range(len(self)):
            start = step * self._batch_size + self._offset
            indices = np.arange(start, start + self._local_batch)
            # Padding repeats the last example: real pixels, which no solver trips over.
            batch = self._split.make_batch(np.minimum(indices, len(self._split) - 1), (0, 0))
            yield {**batch, "mask": (indices < len(self._split)).astype(np.float32)}


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
