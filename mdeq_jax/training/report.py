"""From the reports of steps to figures, a line to read, and a line of JSON."""

import json
import math
from pathlib import Path

import jax
import numpy as np

from mdeq_jax.solvers import Status


def summarize(reports: list[dict]) -> dict[str, float]:
    """Figures over the training steps since the last evaluation, "train/NAME".

    Scalars are means over the steps; "train/forward_rel_residual" and
    "train/backward_rel_residual" are medians over the samples of the equilibrium steps,
    "..._p90" their 90 % quantiles, and "..._unconverged" the share of solves that did not reach
    `tol`. "train/jacobian_loss" is the mean over the steps that applied it, 0 if none did.
    """
    reports = jax.device_get(reports)
    summary = {}
    for name in sorted({name for report in reports for name in report}):
        values = [np.ravel(report[name]) for report in reports if name in report]
        label = "train/" + name.replace("/", "_")
        if name.endswith("rel_residual"):
            everything = np.concatenate(values)
            summary[label] = float(np.median(everything))
            summary[f"{label}_p90"] = float(np.quantile(everything, 0.9))
        elif name.endswith("status"):
            label = label.replace("status", "unconverged")
            summary[label] = float(np.mean(np.concatenate(values) != Status.CONVERGED))
        else:
            values = np.array([value[0] for value in values])
            if name == "jacobian_loss":
                values = values[~np.isnan(values)] if not np.isnan(values).all() else np.zeros(1)
            summary[label] = float(np.mean(values))
    return summary


def describe(metrics: dict) -> str:
    """One line of an evaluation that a person can read."""
    parts = [
        f"accuracy {100 * metrics['eval/accuracy']:.2f} %",
        f"loss {metrics['eval/loss']:.4f}",
        f"NFE {metrics['eval/nfe']:.1f}",
        f"residual {metrics['eval/rel_residual']:.1e} "
        f"(90 %: {metrics['eval/rel_residual_p90']:.1e})",
    ]
    if "train/backward_rel_residual" in metrics:
        parts.append(
            f"backward NFE {metrics['train/backward_nfe']:.1f}, "
            f"residual {metrics['train/backward_rel_residual']:.1e}"
        )
    elif metrics.get("phase") == "pretraining":
        parts.append("pretraining")
    if "train/loss" in metrics:
        parts.append(f"train loss {metrics['train/loss']:.4f}")
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:.0f} images/s")
    return "  ".join(parts)


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, in the order of their steps."""

    def __init__(self, path: Path, *, after_step: int):
        """Opens the file, dropping lines of steps after the one that a run goes on from.

        Args:
            path: of the file; made if missing.
            after_step: the step that the run starts from.
        """
        self._path = path
        if path.exists() and jax.process_index() == 0:
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= after_step]
            path.write_text("".join(line + "\n" for line in kept))

    def write(self, metrics: dict) -> None:
        """Appends one object, its numbers that are not finite as null; first process only."""
        if jax.process_index() == 0:
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in metrics.items()
            }
            with self._path.open("a") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    """The step of a line; infinite for one that a killed run left half written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
