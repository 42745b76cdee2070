"""Summaries of steps, and the lines that are printed."""

import numpy as np

from configs import default
from mdeq_jax.engine.report import describe_evaluation, describe_training, summarize_steps
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
    summary = summarize_steps(reports, build_task(default.get_config()))
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
    config = default.get_config()
    assert describe_evaluation(metrics, build_task(config)) == f"accuracy 50.00 %{rest}"
    config.model.name = "mdeq_segmenter"
    pixels = "mIoU 25.00 %  pixel accuracy 75.00 %"
    assert describe_evaluation(metrics, build_task(config)) == pixels + rest


def test_lines_of_a_model_without_an_equilibrium():
    metrics = {"eval/loss": 0.5, "eval/accuracy": 0.5}
    task = build_task(default.get_config())
    assert describe_evaluation(metrics, task) == "accuracy 50.00 %  loss 0.5000"
    metrics = {"phase": "training", "train/loss": 0.5, "learning_rate": 0.1, "data_wait_share": 0.0}
    metrics |= {"train/grad_norm": 1.0, "train/grad_norm_max": 2.0, "train/skipped_updates": 0}
    line = describe_training({**metrics, "images_per_second": 7.0}, task)
    expected = "loss 0.5000  lr 1.0e-01  gradient 1 (worst 2)  7 images/s  waiting 0 %"
    assert line == expected
