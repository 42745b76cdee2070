"""Pieces of HTML pages that load nothing."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np


def escape(text: Any) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text))


def section(title: str, content: str) -> str:
    """A heading, and what follows it."""
    return f"<h2>{escape(title)}</h2>{content}"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values, which scrolls if it is wider than the page."""
    cells = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


def png(data: bytes, text: str) -> str:
    """A PNG file inside the page.

    Args:
        data: of the file.
        text: what it shows, for those who do not see it.
    """
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{encoded}">'


def picture(array: np.ndarray, text: str) -> str:
    """A picture, uint8 `[H, W, 3]`; `text` as for `png`."""
    from matplotlib.image import imsave  # imported here, because it is slow to import

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(array), format="png")
    return png(file.getvalue(), text)
