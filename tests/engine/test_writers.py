"""Metrics files and their JSON."""

import json
import math

import pytest

from mdeq_jax.engine.writers import MetricsWriter, finite, read_metrics


def test_metrics_file_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15)) + '{"st')
    with MetricsWriter(tmp_path, after_step=10, tensorboard=False) as writer:
        writer.write({"step": 15, "new": float("nan")})
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert steps == [{"step": 5}, {"step": 10}, {"step": 15, "new": None}]


def test_reading_leaves_out_a_line_that_is_half_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.jsonl"):
        read_metrics(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 1')
    assert read_metrics(tmp_path) == [{"step": 5}]
    path.write_text('{"step": 5}\n{"step": 10}')
    assert read_metrics(tmp_path) == [{"step": 5}, {"step": 10}]
    path.write_text('{"st')
    with pytest.raises(ValueError, match="is empty"):
        read_metrics(tmp_path)
    path.write_text('{"st\n{"step": 5}\n')
    with pytest.raises(ValueError, match="not a list of JSON objects"):
        read_metrics(tmp_path)


def test_numbers_that_json_lacks_become_null():
    """A sweep holds the metrics of each number of steps."""
    metrics = {"miou": 0.5, "iou/bus": math.nan, "sweep": {1: {"iou/bus": math.inf, "nfe": 2}}}
    expected = {"miou": 0.5, "iou/bus": None, "sweep": {1: {"iou/bus": None, "nfe": 2}}}
    assert finite(metrics) == expected
