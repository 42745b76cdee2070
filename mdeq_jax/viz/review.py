"""What a trained model gets wrong: confusions and the worst examples, and their HTML."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mdeq_jax.viz.html import escape, picture, section, table

MAX_MATRIX = 32  # classes; more of them become a list of the commonest confusions
MAX_CONFUSIONS = 20


class Example(NamedTuple):
    """One example, and what the model made of it.

    Attributes:
        name: of the example.
        loss: of the example.
        facts: pairs to show, such as ("label", "7").
        pictures: pairs of a caption and uint8 `[H, W, 3]`.
        tokens: pairs of a piece of text and its loss; the text in full is their join.
    """

    name: str
    loss: float
    facts: tuple[tuple[str, str], ...] = ()
    pictures: tuple[tuple[str, np.ndarray], ...] = ()
    tokens: tuple[tuple[str, float], ...] = ()


class Review(NamedTuple):
    """What a model gets wrong on the evaluation split.

    Attributes:
        summary: a sentence on what was evaluated.
        examples: those with the largest loss, the largest first.
        confusion: `[C, C]` how often each class was predicted as each, truth by prediction; None
            without classes.
        class_names: C names.
        counted: what `confusion` counts, as in "images".
    """

    summary: str
    examples: tuple[Example, ...] = ()
    confusion: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    counted: str = "examples"


def review_html(review: Review) -> str:
    """The sections of a review."""
    parts = []
    if review.confusion is not None:
        parts.append(_confusion(review, review.confusion))
    examples = "".join(_example(example) for example in review.examples)
    wide = any(len(example.pictures) != 1 for example in review.examples)
    grid = f'<div class="examples{" wide" if wide else ""}">{examples}</div>' if examples else ""
    parts.append(section("Worst examples", f"<p>{escape(review.summary)}</p>{grid}"))
    return "".join(parts)


def _confusion(review: Review, counts: np.ndarray) -> str:
    """A matrix, shaded by the share of each row; of many classes the commonest confusions."""
    wrong = counts - np.diag(np.diag(counts))
    text = f"<p>{int(wrong.sum()):,} of {int(counts.sum()):,} {escape(review.counted)} are wrong."
    if len(counts) > MAX_MATRIX:
        order = np.argsort(-wrong, axis=None)[:MAX_CONFUSIONS]
        pairs = [np.unravel_index(i, wrong.shape) for i in order if wrong.flat[i] > 0]
        names = review.class_names
        rows = [(f"{names[i]} as {names[j]}", f"{int(wrong[i, j]):,}") for i, j in pairs]
        return section("Commonest confusions", f"{text}</p>{table(rows)}")
    text += (
        " A row is a true class, a column a predicted one; numbers are shares of the row in %.</p>"
    )
    header = "".join(f"<th><span>{escape(name)}</span></th>" for name in review.class_names)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{_cells(i, counts[i], review.class_names)}</tr>"
        for i, name in enumerate(review.class_names)
    )
    matrix = (
        f'<div class="scroll"><table class="matrix"><tr><th></th>{header}</tr>{rows}</table></div>'
    )
    return section("Confusion matrix", text + matrix)


def _cells(truth: int, row: np.ndarray, names: Sequence[str]) -> str:
    """The cells of a row; right ones in blue, wrong ones in red."""
    total, cells = max(int(row.sum()), 1), []
    for prediction, count in enumerate(row):
        share = count / total
        color = "9,105,218" if prediction == truth else "207,34,46"
        shade = 0.0 if count == 0 else 0.15 + 0.6 * share
        number = f"{100 * share:.0f}" if share >= 0.005 else "<1" if count else ""
        title = f"{names[truth]} as {names[prediction]}: {int(count):,}"
        cells.append(
            f'<td title="{escape(title)}" style="background:rgba({color},{shade:.2f})">'
            f"{escape(number)}</td>"
        )
    return "".join(cells)


def _example(example: Example) -> str:
    pictures = "".join(
        f'<div>{picture(array, caption)}<div class="small">{escape(caption)}</div></div>'
        for caption, array in example.pictures
    )
    facts = [("loss", f"{example.loss:.3g}"), *example.facts]
    lines = "".join(f"<div>{escape(name)}: <b>{escape(value)}</b></div>" for name, value in facts)
    return (
        f'<figure class="example"><div class="pictures">{pictures}</div>{_text(example)}'
        f'<figcaption><div class="small">{escape(example.name)}</div>{lines}</figcaption></figure>'
    )


def _text(example: Example) -> str:
    """The tokens, each shaded by its loss."""
    if not example.tokens:
        return ""
    largest = max(max(loss for _, loss in example.tokens), 1e-9)
    spans = "".join(
        f'<span title="{loss:.2f}" style="background:rgba(207,34,46,{0.7 * loss / largest:.2f})">'
        f"{escape(token)}</span>"
        for token, loss in example.tokens
    )
    return f'<div class="text">{spans}</div>'
