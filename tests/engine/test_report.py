"""Summaries of steps, and the lines that are printed."""

import numpy as np

from configs import default
from mdeq_jax.engine.report import describe_evaluation, summarize
from mdeq_jax.engine.step import Report
from mdeq_jax.tasks import build_task


def test_summary():
    def scalars(loss, skipped=0.0):
        return {"loss": np.float32(loss), "skipped": np.float32(skipped)}

    def sums(correct):
        return {"accuracy": np.float32(correct), "loss": np.float32(0), "count": np.float32(4)}

    reports = [
        Report(
            scalars(2.0),
            {
                "forward/rel_residual": np.array([0.1, 0.2, 0.3, 0.4]),
                "forward/status": np.array([0, 0, 0, 1]),
            },
            sums(1),
        ),
        Report(scalars(4.0), {}, sums(2)),
        Report(scalars(np.nan, skipped=1.0), {}, sums(4)),
    ]
    summary = summarize(reports, build_task(default.get_config()))
    assert summary["train/loss"] == 3.0
    assert summary["train/accuracy"] == 3 / 8
    assert summary["train/skipped_updates"] == 1
    np.testing.assert_allclose(summary["train/forward_rel_residual"], 0.25)
    np.testing.assert_allclose(summary["train/forward_rel_residual_max"], 0.4)
    assert summary["train/forward_unconverged"] == 0.25


def test_line_of_an_evaluation():
    metrics = dict(loss=0.5, nfe=8.0, rel_residual=1e-3, rel_residual_p90=2e-3, unconverged=0.25)
    metrics |= dict(accuracy=0.5, miou=0.25, pixel_accuracy=0.75)
    metrics = {f"eval/{name}": value for name, value in metrics.items()}
    rest = "  loss 0.5000  NFE 8.0  residual 1.0e-03 (90 %: 2.0e-03, 25.0 % not converged)"
    assert describe_evaluation(metrics, "accuracy") == f"accuracy 50.00 %{rest}"
    pixels = "mIoU 25.00 %  pixel accuracy 75.00 %"
    assert describe_evaluation(metrics, "miou") == pixels + rest
