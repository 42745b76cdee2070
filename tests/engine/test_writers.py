"""Metrics files and their JSON."""

import json
import math

from mdeq_jax.engine.writers import MetricsWriter, finite


def test_metrics_file_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15)) + '{"st')
    with MetricsWriter(tmp_path, after_step=10, tensorboard=False) as writer:
        writer.write({"step": 15, "new": float("nan")})
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert steps == [{"step": 5}, {"step": 10}, {"step": 15, "new": None}]


def test_numbers_that_json_lacks_become_null():
    """A sweep holds the metrics of each number of steps."""
    metrics = {"miou": 0.5, "iou/bus": math.nan, "sweep": {1: {"iou/bus": math.inf, "nfe": 2}}}
    expected = {"miou": 0.5, "iou/bus": None, "sweep": {1: {"iou/bus": None, "nfe": 2}}}
    assert finite(metrics) == expected
