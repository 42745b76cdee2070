"""A run as one HTML page that needs no other file: `python -m mdeq_jax.viz.report --workdir=RUN`.

The page shows what the work directory holds: curves of `metrics.jsonl`, the last evaluation, the
scores by class if the task has them, `convergence.png`, `sweep.png` and the config.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Panels: title, whether the axis is logarithmic, and the curves as (key in the metrics, label).
PANELS: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", False, (("train/loss", "training"), ("eval/loss", "evaluation"))),
    (
        "Relative residual",
        True,
        (
            ("train/forward_rel_residual", "forward, training"),
            ("train/backward_rel_residual", "backward, training"),
            ("eval/rel_residual", "forward, evaluation"),
        ),
    ),
    (
        "Function evaluations (NFE)",
        False,
        (
            ("train/forward_nfe", "forward, training"),
            ("train/backward_nfe", "backward, training"),
            ("eval/nfe", "forward, evaluation"),
        ),
    ),
    (
        "Share not converged",
        False,
        (
            ("train/forward_unconverged", "forward, training"),
            ("train/backward_unconverged", "backward, training"),
            ("eval/unconverged", "forward, evaluation"),
        ),
    ),
    ("Gradient norm", True, (("train/grad_norm", "mean"), ("train/grad_norm_max", "largest"))),
    ("Learning rate", False, (("learning_rate", "learning rate"),)),
)
PICTURES = {
    "convergence.png": "Residual against solver step",
    "sweep.png": "Evaluations by number of solver steps",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
figure { margin: 0 }
svg, img { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)) }
.scroll { overflow-x: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
td + td { font-variant-numeric: tabular-nums } td { border-top: 1px solid #8884 }
.bar { background: #0969da; height: .7rem; border-radius: 3px; min-width: 1px }
pre { overflow-x: auto; font-size: .85rem }
"""


def write_report(workdir: str | Path, output: str | Path | None = None) -> Path:
    """Writes the page of a run.

    Args:
        workdir: work directory with `metrics.jsonl`.
        output: the file; None: `workdir/report.html`.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no `metrics.jsonl`.
        ValueError: it is empty or not a list of JSON objects.
    """
    workdir = Path(workdir).expanduser()
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no metrics.jsonl: train first, or name a run.")
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is not a list of JSON objects: {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty: the run has reported nothing yet.")
    config = workdir / "config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    name = str(settings.get("name", workdir.name))
    parts = [_summary(lines), _curves(lines), _classes(lines)]
    parts += [_picture(workdir / file, title) for file, title in PICTURES.items()]
    if settings:
        parts.append(_section("Config", f"<pre>{_escape(json.dumps(settings, indent=2))}</pre>"))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_escape(name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{_escape(name)}</h1>{''.join(parts)}</html>\n"
    )
    output = Path(output) if output is not None else workdir / "report.html"
    output.write_text(page)
    return output


def _summary(lines: Sequence[dict]) -> str:
    """The numbers of the last evaluation."""
    evaluations = [line for line in lines if "eval/loss" in line]
    if not evaluations:
        return _section("Last evaluation", "<p>There has been none yet.</p>")
    last = evaluations[-1]
    rows = [("step", f"{last['step']:,}")]
    for key, value in last.items():
        if key.startswith("eval/") and isinstance(value, int | float):
            rows.append((key.removeprefix("eval/").replace("_", " "), _number(value)))
    return _section("Last evaluation", _table(rows))


def _number(value: float) -> str:
    """A count in full, any other number with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _curves(lines: Sequence[dict]) -> str:
    """One drawing a panel; a panel without values is left out."""
    panels = list(PANELS)
    known = {key for _, _, curves in PANELS for key, _ in curves}
    known.add("eval/skipped")
    for key in sorted({key for line in lines for key in line if key.startswith("eval/")} - known):
        training = key.replace("eval/", "train/")
        if any(training in line for line in lines):  # a metric of the task
            title = key.removeprefix("eval/").replace("_", " ").capitalize()
            panels.insert(1, (title, False, ((training, "training"), (key, "evaluation"))))
    drawings = [_panel(lines, *panel) for panel in panels]
    return _section("Curves", f'<div class="curves">{"".join(drawings)}</div>')


def _panel(lines: Sequence[dict], title: str, logarithmic: bool, curves) -> str:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for key, label in curves:
        points = [(x["step"], x[key]) for x in lines if isinstance(x.get(key), int | float)]
        if points:
            axis.plot(*zip(*points), label=label, marker="o" if len(points) < 30 else "", ms=3)
    if not axis.lines:
        return ""
    if logarithmic:
        axis.set_yscale("log")
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    text = drawing.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def _classes(lines: Sequence[dict]) -> str:
    """Bars of the scores by class that the last evaluation holds."""
    sections = []
    last = next((line for line in reversed(lines) if "eval/loss" in line), {})
    for key, scores in last.items():
        if not isinstance(scores, dict) or not scores:
            continue
        rows = "".join(
            f"<tr><td>{_escape(name)}</td><td>{'-' if score is None else f'{score:.3f}'}</td>"
            f'<td style="width:60%"><div class="bar" style="width:{100 * (score or 0):.1f}%">'
            "</div></td></tr>"
            for name, score in scores.items()
            if score is None or isinstance(score, int | float)
        )
        title = key.removeprefix("eval/").replace("_", " ").capitalize()
        sections.append(_section(title, f'<div class="scroll"><table>{rows}</table></div>'))
    return "".join(sections)


def _picture(path: Path, title: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return _section(title, f'<img alt="{_escape(title)}" src="data:image/png;base64,{data}">')


def _section(title: str, content: str) -> str:
    return f"<h2>{_escape(title)}</h2>{content}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{_escape(a)}</td><td>{_escape(b)}</td></tr>" for a, b in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


def _escape(text: Any) -> str:
    return html.escape(str(text))


def main() -> None:
    """Parses the command line and writes the page."""
    parser = argparse.ArgumentParser(description="Writes a run as one HTML page.")
    parser.add_argument("--workdir", required=True, help="work directory of train.py")
    parser.add_argument("--output", help="file to write; default: WORKDIR/report.html")
    arguments = parser.parse_args()
    try:
        print(f"Wrote {write_report(arguments.workdir, arguments.output)}.")
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
