"""From the reports of steps to metrics, and lines to print."""

from collections.abc import Iterable

import jax
import numpy as np

from mdeq_jax.engine.step import Report
from mdeq_jax.runtime import devices
from mdeq_jax.solvers import Status
from mdeq_jax.tasks import Task


def fetch(report: Report) -> Report:
    """A step's report on the host: scalars, `[B]` of this host's samples, sums."""
    one = devices.unreplicate((report.scalars, report.sums))
    rows = jax.tree.map(np.ravel, devices.fetch(report.per_sample))
    return Report(one[0], rows, one[1])


def summarize_steps(reports: list[Report], task: Task) -> dict[str, float]:
    """Metrics over training steps, "train/NAME".

    Scalars are means over the steps whose update was made. "train/skipped_updates" counts the
    others, and "train/grad_norm_max" is the largest norm. "train/forward_rel_residual" and
    "train/backward_rel_residual" are medians over this host's samples of the equilibrium steps,
    "..._p90" their 90 % quantiles, "..._max" their worst, and "..._unconverged" the share of solves
    that did not reach `tol`. "train/jacobian_loss" is the mean over the steps that applied it, 0 if
    none did.

    Args:
        reports: of `fetch`.
        task: of the model.
    """
    made = [report for report in reports if not report.scalars["skipped"]] or reports
    summary = {**_scalars(made), **_solves(reports)}
    sums = {name: sum(r.sums[name].astype(np.float64) for r in made) for name in made[0].sums}
    numbers = task.finalize(sums)
    numbers.pop("loss", None)  # the loss that is trained is among the scalars
    summary |= {f"train/{name}": value for name, value in numbers.items()}
    summary["train/skipped_updates"] = int(sum(r.scalars["skipped"] for r in reports))
    return summary


def _scalars(reports: list[Report]) -> dict[str, float]:
    summary = {}
    for name in _names(report.scalars for report in reports):
        values = np.array([r.scalars[name] for r in reports if name in r.scalars], np.float64)
        if name == "jacobian_loss":
            values = values[~np.isnan(values)] if not np.isnan(values).all() else np.zeros(1)
        if not name.startswith("skipped"):
            summary[_key(name)] = float(np.mean(values))
        if name == "grad_norm":
            summary["train/grad_norm_max"] = float(np.max(values))
    return summary


def _solves(reports: list[Report]) -> dict[str, float]:
    """Residuals and unconverged shares over the samples of all steps that solved."""
    summary = {}
    for name in _names(report.per_sample for report in reports):
        values = np.concatenate([r.per_sample[name] for r in reports if name in r.per_sample])
        if name.endswith("status"):
            key = _key(name.replace("status", "unconverged"))
            summary[key] = float(np.mean(values != Status.CONVERGED))
        else:
            key = _key(name)
            summary[key] = float(np.median(values))
            with np.errstate(invalid="ignore"):  # of solves that diverged
                summary[f"{key}_p90"] = float(np.quantile(values, 0.9))
            summary[f"{key}_max"] = float(np.max(values))
    return summary


def _names(dicts: Iterable[dict]) -> list[str]:
    return sorted({name for entries in dicts for name in entries})


def _key(name: str) -> str:
    return "train/" + name.replace("/", "_")


def describe_training(metrics: dict, task: Task) -> str:
    """One line of training metrics for people to read."""
    parts = [f"loss {metrics['train/loss']:.4f}", f"lr {metrics['learning_rate']:.1e}"]
    if "train/forward_nfe" in metrics:
        nfe = f"NFE {metrics['train/forward_nfe']:.1f}"
        residual = _residual(metrics, "train/forward_rel_residual", "train/forward_unconverged")
        if "train/backward_nfe" in metrics:
            nfe += f" + {metrics['train/backward_nfe']:.1f}"
            residual += ", backward " + _residual(
                metrics, "train/backward_rel_residual", "train/backward_unconverged"
            )
        parts += [nfe, f"residual {residual}"]
    elif metrics["phase"] == "pretraining":
        parts.append("pretraining")
    worst = metrics["train/grad_norm_max"]
    parts.append(f"gradient {metrics['train/grad_norm']:.2g} (worst {worst:.2g})")
    if metrics["train/skipped_updates"]:
        parts.append(f"{metrics['train/skipped_updates']} updates skipped (not finite)")
    noun = task.example_noun
    parts.append(f"{metrics[f'{noun}_per_second']:.0f} {noun}/s")
    parts.append(f"waiting {100 * metrics['data_wait_share']:.0f} %")
    return "  ".join(parts)


def _residual(metrics: dict, residual: str, unconverged: str) -> str:
    text = f"{metrics[residual]:.1e} (worst {metrics[f'{residual}_max']:.1e}"
    if unconverged in metrics:
        text += f", {100 * metrics[unconverged]:.1f} % not converged"
    return text + ")"


def describe_evaluation(metrics: dict, task: Task) -> str:
    """One line of an evaluation for people to read.

    Args:
        metrics: of `Evaluator`.
        task: of the model.
    """
    parts = [*task.describe(metrics), f"loss {metrics['eval/loss']:.4f}"]
    if "eval/nfe" in metrics:
        parts += [
            f"NFE {metrics['eval/nfe']:.1f}",
            f"residual {metrics['eval/rel_residual']:.1e} "
            f"(90 %: {metrics['eval/rel_residual_p90']:.1e}, "
            f"{100 * metrics['eval/unconverged']:.1f} % not converged)",
        ]
    if "eval/spectral_radius" in metrics:
        parts.append(f"spectral radius {metrics['eval/spectral_radius']:.2f}")
    return "  ".join(parts)
