"""The files of the metrics of a run: `metrics.jsonl` and TensorBoard."""

import json
import math
from pathlib import Path

from mdeq_jax.runtime import hosts

METRICS_FILE = "metrics.jsonl"


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
        self._path = workdir / METRICS_FILE
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


def read_metrics(workdir: str | Path) -> list[dict]:
    """The lines of `workdir/metrics.jsonl`, in the order of their steps.

    A last line that a killed run has left half written is not one of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or holds something else.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} holds no {METRICS_FILE}: name a work directory of train.py."
        )
    *texts, rest = path.read_text().split("\n")
    if math.isfinite(_step_of(rest)):
        texts.append(rest)
    try:
        lines = [json.loads(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"{path} is not a list of JSON objects: {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty: the run has reported nothing yet.")
    return lines


def has_evaluation(workdir: Path, step: int) -> bool:
    """Whether the metrics of a run have an evaluation of this step."""
    if not (workdir / METRICS_FILE).is_file():
        return False
    lines = (workdir / METRICS_FILE).read_text().splitlines()
    return any(_step_of(line) == step and "eval/loss" in json.loads(line) for line in lines)


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
