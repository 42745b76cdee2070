"""Where the figures of a run go: `metrics.jsonl` and TensorBoard."""

import json
import math
from pathlib import Path

from mdeq_jax.runtime import hosts


class MetricsWriter:
    """`metrics.jsonl`, one JSON object a line in the order of their steps, and TensorBoard.

    Only the first process writes; on the others it does nothing.
    """

    def __init__(self, workdir: Path, *, after_step: int, tensorboard: bool):
        """Opens the files, dropping what is of steps after the one that a run goes on from.

        Args:
            workdir: work directory.
            after_step: the step that the run starts from.
            tensorboard: whether to write `workdir/tensorboard/`.
        """
        self._path = workdir / "metrics.jsonl"
        self._tensorboard = None
        if not hosts.is_main():
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
        """Appends one object with a "step", its numbers that are not finite as null."""
        if not hosts.is_main():
            return
        figures = finite(metrics)
        with self._path.open("a") as file:
            file.write(json.dumps(figures, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and name != "step":
                    self._tensorboard.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Ends the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def finite(metrics: dict) -> dict:
    """The figures as JSON can tell them: None for what is not finite, in dicts inside too.

    A class that does not occur has no intersection over union, for example.
    """
    return {name: _jsonable(value) for name, value in metrics.items()}


def _jsonable(value):
    if isinstance(value, dict):
        return finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    """The step of a line; infinite for one that a killed run left half written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
