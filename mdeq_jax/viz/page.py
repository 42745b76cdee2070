"""The page of a run in HTML, which needs no other file."""

import io
import json
from collections.abc import Sequence

from matplotlib.figure import Figure

from mdeq_jax.viz.html import escape, png, section, table

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
SPELLED = {"iou": "IoU", "miou": "mIoU", "nfe": "NFE", "top5_accuracy": "Top-5 accuracy"}
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
.bars { width: 100% } .bars td:first-child { white-space: nowrap }
.wide figcaption { display: flex; flex-wrap: wrap; gap: 0 1.2rem; align-items: baseline }
.matrix th, .matrix td { padding: .3rem; text-align: center; min-width: 2.2rem; border: 0 }
.matrix th { font-weight: 400; white-space: nowrap } .matrix tr th:first-child { text-align: right }
.matrix tr:first-child th { vertical-align: bottom }
.matrix tr:first-child span { writing-mode: vertical-rl; transform: rotate(180deg) }
.examples, .pictures { display: grid; gap: 1rem .6rem }
.examples { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) }
.examples.wide { grid-template-columns: 1fr }
.pictures { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)) }
.example img { width: 100%; image-rendering: pixelated; border-radius: 3px }
.small { font-size: .85rem; opacity: .75 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: .9rem/1.5 ui-monospace, monospace }
"""


def page(
    name: str, lines: Sequence[dict], settings: dict, pictures: dict[str, bytes], review: str
) -> str:
    """The page of a run.

    Args:
        name: of the run.
        lines: of `metrics.jsonl`.
        settings: of `config.json`; empty without one.
        pictures: PNG files by title.
        review: HTML of what the model gets wrong.
    """
    parts = [_summary(lines), _curves(lines), _classes(lines), review]
    parts += [section(title, png(data, title)) for title, data in pictures.items()]
    if settings:
        parts.append(section("Config", f"<pre>{escape(json.dumps(settings, indent=2))}</pre>"))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{escape(name)}</h1>{''.join(parts)}</html>\n"
    )


def _summary(lines: Sequence[dict]) -> str:
    """The numbers of the last evaluation."""
    evaluations = [line for line in lines if "eval/loss" in line]
    if not evaluations:
        return section("Last evaluation", "<p>There has been none yet.</p>")
    last = evaluations[-1]
    rows = [("Step", f"{last['step']:,}")]
    for key, value in last.items():
        if key.count("/") == 1 and key.startswith("eval/") and isinstance(value, int | float):
            rows.append((_title(key.removeprefix("eval/")), _number(value)))
    return section("Last evaluation", table(rows))


def _number(value: float) -> str:
    """A count in full, any other number with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _curves(lines: Sequence[dict]) -> str:
    """One drawing a panel; a panel without values is left out."""
    panels = list(PANELS)
    known = {key for _, _, curves in PANELS for key, _ in curves}
    known.add("eval/skipped")
    for key in sorted(
        {key for line in lines for key in line if key.startswith("eval/")} - known, reverse=True
    ):
        training = key.replace("eval/", "train/")
        if key.count("/") == 1 and any(training in line for line in lines):  # of the task
            title = _title(key.removeprefix("eval/"))
            panels.insert(1, (title, False, ((training, "training"), (key, "evaluation"))))
    drawings = [_panel(lines, *panel) for panel in panels]
    return section("Curves", f'<div class="curves">{"".join(drawings)}</div>')


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
    """Bars of the scores by class that the last evaluation holds: "eval/SCORE/CLASS"."""
    last = next((line for line in reversed(lines) if "eval/loss" in line), {})
    scores = {}
    for key, value in last.items():
        if key.startswith("eval/") and key.count("/") > 1:
            _, score, name = key.split("/", 2)
            scores.setdefault(score, {})[name] = value
    return "".join(section(f"{_title(score)} by class", _bars(v)) for score, v in scores.items())


def _bars(scores: dict[str, float | None]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{'-' if score is None else f'{score:.3f}'}</td>"
        f'<td style="width:60%"><div class="bar" style="width:{100 * (score or 0):.1f}%">'
        "</div></td></tr>"
        for name, score in scores.items()
    )
    return f'<div class="scroll"><table class="bars">{rows}</table></div>'


def _title(name: str) -> str:
    """A heading of a metric's name."""
    return SPELLED.get(name, name.replace("_", " ").capitalize())
