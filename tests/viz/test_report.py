"""The page of a run: one file, with what the work directory holds and nothing else."""

import base64
import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from mdeq_jax.models import MODELS
from mdeq_jax.viz import report
from mdeq_jax.viz.report import write_report
from mdeq_jax.viz.review import Example, Review

LINES = [
    {"step": 1, "train/loss": 2.0, "train/accuracy": 0.2, "train/forward_rel_residual": 0.5},
    {"step": 2, "train/loss": 1.0, "train/accuracy": 0.6, "train/forward_rel_residual": 0.1},
    {
        "step": 2,
        "eval/loss": 1.5,
        "eval/accuracy": 0.625,
        "eval/iou/road & <b>": 0.5,
        "eval/iou/sky": None,
    },
]
CONFUSION = np.array([[3, 1], [0, 0]])


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
    assert "<td>Accuracy</td><td>0.625</td>" in page
    assert "<h2>IoU by class</h2>" in page
    assert "<td>road &amp; &lt;b&gt;</td><td>0.500</td>" in page
    assert "<td>sky</td><td>-</td>" in page
    assert "data:image/png;base64," in page and "Residual against solver step" in page
    assert "Evaluations by number" not in page  # there is no sweep.png
    # Loss, accuracy and residual have values; the other panels are left out.
    assert page.count("<figure>") == 3
    loaded = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"|@import|url\((?!#)', page)
    assert not loaded


def test_shows_what_the_model_gets_wrong(run):
    image = np.zeros((2, 3, 3), np.uint8)
    examples = (
        Example("image 7", 2.5, (("label", "<a>"),), (("", image),)),
        Example("segment 3", 1.25, tokens=(("x", 0.5), ("<y>", 2.0))),
    )
    review = Review("Of all 4 images, these.", examples, CONFUSION, ("<a>", "b"), "images")
    page = write_report(run, reviewed=review).read_text()
    assert "1 of 4 images are wrong." in page and "Of all 4 images, these." in page
    assert re.findall(r'<td title="([^"]*)" style="[^"]*">([^<]*)</td>', page) == [
        ("&lt;a&gt; as &lt;a&gt;: 3", "75"),
        ("&lt;a&gt; as b: 1", "25"),
        ("b as &lt;a&gt;: 0", ""),
        ("b as b: 0", ""),
    ]
    assert "loss: <b>2.5</b>" in page and "label: <b>&lt;a&gt;</b>" in page
    (encoded,) = re.findall(r"data:image/png;base64,([^\"]*)", page)
    shown = imread(io.BytesIO(base64.b64decode(encoded)))
    assert shown.shape[:2] == (2, 3) and not shown[..., :3].any()
    assert ">x</span>" in page and 'title="2.00"' in page and ">&lt;y&gt;</span>" in page
    assert (
        "They are unknown: no data"
        in write_report(run, reviewed="They are unknown: no data").read_text()
    )


def test_many_classes_become_a_list(run):
    counts = 10 * np.eye(40, dtype=int)
    counts[3, 5] = 7
    names = tuple(f"class {i}" for i in range(40))
    page = write_report(run, reviewed=Review("", (), counts, names)).read_text()
    assert "<td>class 3 as class 5</td><td>7</td>" in page and page.count(" as class ") == 1


def test_the_command(run, monkeypatch, capsys):
    """Without the data or a checkpoint it writes the page all the same, and says why."""
    (run / "own.py").write_text(
        "from mdeq_jax.models import MODELS\nMODELS['own'] = MODELS['mdeq_classifier']\n"
    )
    monkeypatch.setattr("sys.argv", ["report", f"--workdir={run}", f"--config={run / 'own.py'}"])
    report.main()
    assert MODELS.pop("own")
    out = capsys.readouterr().out
    assert "Without the worst examples:" in out and "holds no config.json" in out
    assert "They are unknown" in (run / "report.html").read_text()
    monkeypatch.setattr("sys.argv", ["report", f"--workdir={run / 'missing'}"])
    with pytest.raises(SystemExit, match=r"holds no metrics\.jsonl"):
        report.main()


def test_without_an_evaluation(run):
    (run / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    assert "There has been none yet" in write_report(run, run / "x.html").read_text()


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("{\n{}\n", "not a list of JSON")])
def test_bad_files(tmp_path, text, message):
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))
