"""Which examples make batch k, for which process, and how a batch is split over devices."""

import dataclasses
import functools

import numpy as np
from einops import rearrange

from mdeq_jax.data.dataset import ORDER_STREAM, Skipped, Split


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
        local = self.batch_size // self.process_count
        return step * self.batch_size + self.process_index * local + np.arange(local)


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Makes the training batch of a step. It is picklable, because workers receive a copy.

    Attributes:
        split: the training split.
        shard: this process's slice of each batch.
        seed: of the order and of the transforms.
    """

    split: Split
    shard: Shard
    seed: int

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step` and the examples that it skipped."""
        epoch, step = divmod(step, len(self.split) // self.shard.batch_size)
        order = epoch_order(len(self.split), self.seed, epoch)
        return self.split.make_batch(order[self.shard.indices(step)], (self.seed, epoch))


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Makes the evaluation batch of a step. It is picklable, because workers receive a copy.

    Attributes:
        split: the evaluation split.
        shard: this process's slice of each batch.
    """

    split: Split
    shard: Shard

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Returns batch number `step`, with its mask, and the examples that it skipped."""
        indices = self.shard.indices(step)
        mask = (indices < len(self.split)).astype(np.float32)
        # Padding repeats the last example, because a solver may fail on a blank one.
        batch, skipped = self.split.make_batch(np.minimum(indices, len(self.split) - 1), (0, 0))
        mask[[position for position, _ in skipped]] = 0
        return {**batch, "mask": mask}, skipped


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
