"""The page of a run: one file, with what the work directory holds and nothing else."""

import json
import re

import pytest
from matplotlib.figure import Figure

from mdeq_jax.viz.report import write_report

LINES = [
    {"step": 1, "train/loss": 2.0, "train/accuracy": 0.2, "train/forward_rel_residual": 0.5},
    {"step": 2, "train/loss": 1.0, "train/accuracy": 0.6, "train/forward_rel_residual": 0.1},
    {
        "step": 2,
        "eval/loss": 1.5,
        "eval/accuracy": 0.625,
        "eval/iou": {"road & <b>": 0.5, "sky": None},
    },
]

LINES[-1]["eval/iou"] = {"road & <b>": 0.5, "sky": None}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    return tmp_path


def test_holds_the_figures_and_loads_nothing(run):
    (run / "config.json").write_text(json.dumps({"name": "a <run>", "seed": 3}))
    figure = Figure(figsize=(1, 1))
    figure.savefig(run / "convergence.png")
    page = write_report(run).read_text()
    assert "<h1>a &lt;run&gt;</h1>" in page and "&quot;seed&quot;: 3" in page
    assert "<td>accuracy</td><td>0.625</td>" in page
    assert (
        "<td>road &amp; &lt;b&gt;</td><td>0.500</td>" in page and "<td>sky</td><td>-</td>" in page
    )
    assert "data:image/png;base64," in page and "Residual against solver step" in page
    assert "Evaluations by number" not in page  # there is no sweep.png
    # Loss, accuracy and residual have values; the other panels are left out.
    assert page.count("<figure>") == 3
    loaded = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"|@import|url\((?!#)', page)
    assert not loaded


def test_without_an_evaluation(run):
    (run / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    assert "There has been none yet" in write_report(run, run / "x.html").read_text()


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("{", "not a list of JSON")])
def test_bad_files(tmp_path, text, message):
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))
