"""The curves of several runs in one figure."""

import json

import pytest

from mdeq_jax.viz.compare import main, plot_runs, read_curve


@pytest.fixture
def runs(tmp_path):
    """Two work directories with training lines and evaluations."""
    for name, scores in (("deq", (3.0, 2.0)), ("explicit", (4.0, 1.0))):
        lines = []
        for epoch, score in enumerate(scores, 1):
            lines.append({"step": 5 * epoch - 2, "epoch": epoch - 0.4, "train/loss": 9.0})
            lines.append({"step": 5 * epoch, "epoch": float(epoch), "eval/perplexity": score})
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    return [tmp_path / "deq", tmp_path / "explicit"]


def test_a_curve_is_that_of_the_evaluations(runs):
    assert read_curve(runs[1], "perplexity") == ([1.0, 2.0], [4.0, 1.0])


def test_the_figure(runs, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    main([*map(str, runs), "--metric=perplexity", f"--output={picture}"])
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out


def test_bad_runs(runs, tmp_path):
    with pytest.raises(ValueError, match=r"no evaluation with 'bits', only with \['perplexity'\]"):
        plot_runs(tmp_path / "curves.png", runs, "bits")
    with pytest.raises(SystemExit, match="name a work directory of train"):
        main([str(tmp_path), "--metric=perplexity"])
    assert not (tmp_path / "curves.png").exists()
