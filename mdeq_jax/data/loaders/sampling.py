"""Which examples make batch k, for which process, and how a batch is split over devices."""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
from einops import rearrange

from mdeq_jax.data.dataset import ORDER_STREAM, InOrderSplit, Order, Skipped, Split


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of an epoch: a permutation of the examples, the same on every host."""
    order = np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(num_examples)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


@dataclasses.dataclass(frozen=True)
class Shard:
    """The slice of each global batch that one process makes.

    Attributes:
        batch_size: examples of a global batch, over all processes.
        process_index: which slice is this process's.
        process_count: number of slices.
    """

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
        """Returns this process's part of `[step * batch_size, (step + 1) * batch_size)`."""
        return step * self.batch_size + self.rows

    @property
    def rows(self) -> np.ndarray:
        """This process's rows of a global batch."""
        local = self.batch_size // self.process_count
        return self.process_index * local + np.arange(local)


class Batches(Protocol):
    """Makes the batch of a step. It is picklable, because workers receive a copy.

    Attributes:
        num_steps: batches of a pass over the split.
        identity: settings that a saved position is only valid for.
    """

    @property
    def num_steps(self) -> int:
        """See the class."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """See the class."""
        ...

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step` and the examples that it skipped."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Makes shuffled training batches. See `Batches`.

    Attributes:
        split: the training split.
        shard: this process's slice of each batch.
        seed: of the order and of the transforms.
    """

    split: Split
    shard: Shard
    seed: int

    @property
    def num_steps(self) -> int:
        """Batches of an epoch."""
        return len(self.split) // self.shard.batch_size

    @property
    def identity(self) -> dict[str, Any]:
        """The order is that of the loader's own settings."""
        return {}

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step` and the examples that it skipped."""
        epoch, step = divmod(step, self.num_steps)
        order = epoch_order(len(self.split), self.seed, epoch)
        return self.split.make_batch(order[self.shard.indices(step)], (self.seed, epoch))


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Makes evaluation batches, padded at the end. See `Batches`.

    Attributes:
        split: the evaluation split.
        shard: this process's slice of each batch.
    """

    split: Split
    shard: Shard

    @property
    def num_steps(self) -> int:
        """Batches of the split, the last one padded."""
        return -(-len(self.split) // self.shard.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """An evaluation is never resumed."""
        return {}

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step`, with its mask, and the examples that it skipped."""
        indices = self.shard.indices(step)
        mask = (indices < len(self.split)).astype(np.float32)
        # Padding repeats the last example, because a solver may fail on a blank one.
        batch, skipped = self.split.make_batch(np.minimum(indices, len(self.split) - 1), (0, 0))
        mask[[position for position, _ in skipped]] = 0
        return {**batch, "mask": mask}, skipped


@dataclasses.dataclass(frozen=True)
class InOrderBatches:
    """Makes the batches of a split that is read in order, pass after pass. See `Batches`.

    Attributes:
        order: of the split.
        rows: this process's rows of each batch.
    """

    order: Order
    rows: np.ndarray

    @property
    def num_steps(self) -> int:
        """Batches of a pass."""
        return self.order.num_steps

    @property
    def identity(self) -> dict[str, Any]:
        """Of the order."""
        return self.order.identity

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step` and the examples that it skipped."""
        return self.order.make_batch(step % self.num_steps, self.rows)


def train_batches(split: Split, shard: Shard, seed: int) -> Batches:
    """Returns the training batches of a split: in its own order if it has one, else shuffled."""
    if isinstance(split, InOrderSplit):
        return InOrderBatches(split.columns(shard.batch_size), shard.rows)
    return TrainBatches(split, shard, seed)


def eval_batches(split: Split, shard: Shard) -> Batches:
    """Returns the evaluation batches of a split: in its own order if it has one."""
    if isinstance(split, InOrderSplit):
        return InOrderBatches(split.columns(shard.batch_size), shard.rows)
    return EvalBatches(split, shard)


def shard_batch(batch: dict[str, np.ndarray], num_devices: int) -> dict[str, np.ndarray]:
    """Reshapes every entry `[B, ...]` to `[num_devices, B / num_devices, ...]`.

    Raises:
        ValueError: B is not divisible by `num_devices`.
    """
    for entry in batch.values():
        if len(entry) % num_devices:
            raise ValueError(
                f"A batch of {len(entry)} examples cannot be split over {num_devices} devices: "
                "choose a batch size that is a multiple of the number of devices."
            )
    pattern = "(devices batch) ... -> devices batch ..."
    return {name: rearrange(entry, pattern, devices=num_devices) for name, entry in batch.items()}
