"""A split that is one stream of tokens, cut into columns that are read in order."""

import dataclasses
import hashlib

import numpy as np

from mdeq_jax.data.dataset import Skipped
from mdeq_jax.data.text.vocabulary import check_tokens


@dataclasses.dataclass(frozen=True)
class Columns:
    """A stream in columns, one for each row of a batch, read a segment at a time.

    Attributes:
        tokens: int32 `[N]`, the stream.
        starts: int64 `[B]`, where each column begins.
        num_targets: int64 `[B]`, tokens that each column predicts.
        segment_length: T, positions of a segment.
        identity: what a saved position is only valid for.
        stride: positions from one segment to the next. Fewer than T: a sliding window, whose
            positions before its last `stride` ones are only context.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_targets: np.ndarray
    segment_length: int
    identity: dict
    stride: int

    @property
    def num_steps(self) -> int:
        """Segments of a pass."""
        return 1 + max(0, -(-(int(self.num_targets.max()) - self.segment_length) // self.stride))

    @property
    def slides(self) -> bool:
        """Whether segments overlap."""
        return self.stride < self.segment_length

    def make_batch(self, step: int, rows: np.ndarray) -> tuple[dict, list[Skipped]]:
        """Returns segment `step` of the columns `rows`.

        Returns:
            {"tokens" int32 `[b, T]`, "targets" int32 `[b, T]`, the next tokens, "valid" bool
            `[b, T]`, False after the end of a column and where a segment before it counted the
            target, "start" bool `[b]`, True in the first segment of a pass and in a window that
            slides, "mask" float32 `[b]`, 0 if no target is valid}, and no skipped examples.
        """
        positions = np.arange(self.segment_length)
        within = step * self.stride + positions
        valid = within < self.num_targets[rows, None]  # [b, T]
        if step:
            valid &= positions >= self.segment_length - self.stride
        # Positions after the end repeat the last token of the stream.
        inputs = np.minimum(self.starts[rows, None] + within, len(self.tokens) - 2)
        batch = {
            "tokens": self.tokens[inputs],
            "targets": self.tokens[inputs + 1],
            "valid": valid,
            "start": np.full(len(rows), step == 0 or self.slides),
            "mask": valid.any(axis=1).astype(np.float32),
        }
        return batch, []


@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """A stream of tokens. See `Split` and `InOrderSplit` of `mdeq_jax.data.dataset`.

    Attributes:
        tokens: int32 `[N]`.
        vocab_size: number of tokens that there are.
        segment_length: T, positions of a segment.
        keeps_all: every token but the first is a target exactly once. Without it the columns are
            those of the original: equally long, without the remainder, and the first token of a
            column is no target.
        name: of the data set and the split, for errors.
        stride: see `Columns`; None: T.
    """

    tokens: np.ndarray
    vocab_size: int
    segment_length: int
    keeps_all: bool
    name: str
    stride: int | None = None
    in_memory = True

    def __post_init__(self):
        check_tokens(self.tokens, self.vocab_size, self.name)
        if self.segment_length < 1:
            raise ValueError(
                f"config.data.segment_length is {self.segment_length}, but must be at least 1."
            )
        if self.stride is not None and not 1 <= self.stride <= self.segment_length:
            raise ValueError(
                f"config.data.eval_stride is {self.stride}, but must lie between 1 and the "
                f"{self.segment_length} positions of an evaluation segment."
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def columns(self, batch_size: int) -> Columns:
        """Cuts the stream into `batch_size` columns.

        Raises:
            ValueError: a column is shorter than a segment.
        """
        if self.keeps_all:
            targets = len(self.tokens) - 1
            length = max(1, -(-targets // batch_size))
            starts = length * np.arange(batch_size)
            num_targets = np.clip(targets - starts, 0, length)
        else:
            length = len(self.tokens) // batch_size
            starts = length * np.arange(batch_size)
            num_targets = np.full(batch_size, length - 1)
        longest = int(num_targets.max())
        if longest < self.segment_length:
            raise ValueError(
                f"{self.name} has {len(self.tokens):,} tokens, which make {batch_size} columns "
                f"with {max(longest, 0):,} predictions each, but a segment has "
                f"{self.segment_length:,}: lower the batch size (config.train.batch_size, "
                "config.eval.batch_size) or config.data.segment_length, or take a longer text."
            )
        digest = hashlib.sha256(self.tokens.tobytes()).hexdigest()[:16]
        identity = {"segment_length": self.segment_length, "tokens": digest}
        stride = self.stride or self.segment_length
        return Columns(self.tokens, starts, num_targets, self.segment_length, identity, stride)

    def make_batch(self, indices: np.ndarray, key: tuple[int, int]):
        """Not available: a stream has no examples to choose from; see `columns`."""
        raise TypeError(f"{self.name} is read in order: use `columns`.")
