"""The files that the metrics of a run go to: `metrics.jsonl` and TensorBoard."""

import json
import math
from pathlib import Path

from mdeq_jax.runtime import hosts


class MetricsWriter:
    """Writes `metrics.jsonl`, one JSON object a line in the order of the steps, and TensorBoard.

    Only the first process writes.
    """

    def __init__(self, workdir: Path, *, after_step: int, tensorboard: bool):
        """Opens the files, and drops the lines after the step that the run resumes from.

        Args:
            workdir: work directory.
            after_step: the step that the run starts from.
            tensorboard: whether to write `workdir/tensorboard/`.
        """
        self._path = workdir / "metrics.jsonl"
        self._tensorboard = None
        if not hosts.is_primary():
            return
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= after_step]
            if kept != lines:
                replacement = self._path.with_suffix(".jsonl.tmp")
                replacement.write_text("".join(line + "\n" for line in kept))
                replacement.rename(self._path)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=after_step + 1, max_queue=100
            )

    def write(self, metrics: dict) -> None:
        """Appends one object with a "step"; numbers that are not finite become null."""
        if not hosts.is_primary():
            return
        numbers = finite(metrics)
        with self._path.open("a") as file:
            file.write(json.dumps(numbers, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float) and name != "step":
                    self._tensorboard.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Closes the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def finite(metrics: dict) -> dict:
    """The metrics as JSON can hold them: None for numbers that are not finite, in inner dicts too.

    The score of a class that does not occur is such a number, for example.
    """
    return {name: _jsonable(value) for name, value in metrics.items()}


def _jsonable(value):
    if isinstance(value, dict):
        return finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that a killed run left half written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
