"""Pictures of segmentations: coloured maps, overlays and contact sheets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # imported where pictures are drawn, because it is slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Color = tuple[int, int, int]


def colorize(
    classes: np.ndarray, colors: tuple[Color, ...], other: Color = (0, 0, 0)
) -> np.ndarray:
    """Draws a map of classes in the colours of the classes.

    Args:
        classes: int `[H, W]`.
        colors: RGB of the classes 0, 1, ...
        other: RGB of every other value.

    Returns:
        uint8 `[H, W, 3]`.
    """
    palette = np.array([*colors, other], np.uint8)
    known = (classes >= 0) & (classes < len(colors))
    return palette[np.where(known, classes, len(colors))]


def overlay(image: np.ndarray, colored: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lays a coloured map over its image.

    Args:
        image: uint8 `[H, W, 3]`.
        colored: uint8 `[H, W, 3]`.
        opacity: of the map, in [0, 1].

    Returns:
        uint8 `[H, W, 3]`.
    """
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colored
    return np.rint(mixed).astype(np.uint8)


class Row(NamedTuple):
    """One image of a contact sheet.

    Attributes:
        name: of the image.
        image: uint8 `[H, W, 3]`.
        truth: int `[H, W]`, or None if it is unknown.
        prediction: int `[H, W]`.
        confidence: `[H, W]` probability of the predicted class.
        residual: `[h, w]` relative residual of the equilibrium, at any resolution.
        caption: figures of this image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray
    confidence: np.ndarray
    residual: np.ndarray
    caption: str = ""


def contact_sheet(
    path: Path,
    rows: list[Row],
    class_names: tuple[str, ...],
    colors: tuple[Color, ...],
    *,
    title: str = "",
    dpi: int = 100,
) -> None:
    """Draws image, truth, prediction, confidence and residual side by side, one row per image.

    All residuals share one logarithmic scale. Without any truth, the sheet has no such column.

    Args:
        path: picture file to write.
        rows: the images.
        class_names: of the classes 0, 1, ...
        colors: RGB of the same.
        title: of the sheet.
        dpi: pixels per inch; a panel is 3 inches wide.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("A contact sheet needs at least one row; got none.")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with_truth = any(row.truth is not None for row in rows)
    headings = ["image", *(["truth"] if with_truth else []), "prediction"]
    headings += ["confidence", "residual |f(z) − z| / |f(z)|"]
    height = 3 * max(row.image.shape[0] / row.image.shape[1] for row in rows)
    figure = Figure(
        figsize=(3 * len(headings), (height + 0.25) * len(rows) + 0.9), layout="constrained"
    )
    figure.suptitle(title, fontsize=13)
    # The last row holds the legend and the colour bars, so all panels have one size.
    grid = figure.add_gridspec(
        len(rows) + 1, len(headings), height_ratios=[*([height] * len(rows)), 0.12]
    )
    residuals = np.concatenate([_log10(row.residual).ravel() for row in rows])
    low, high = np.quantile(residuals, (0.01, 0.99))
    limits = (float(low), max(float(high), float(low) + 1e-3))
    scales = []
    for i, row in enumerate(rows):
        axes = [figure.add_subplot(grid[i, j]) for j in range(len(headings))]
        scales = _draw_row(axes, row, colors, limits, with_truth)
        for axis, heading in zip(axes, headings):
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(heading, fontsize=11)
    bars = [
        figure.colorbar(scale, cax=figure.add_subplot(grid[-1, column]), orientation="horizontal")
        for column, scale in zip((-2, -1), scales)
    ]
    for bar in bars:
        bar.ax.tick_params(labelsize=8)
    bars[-1].ax.xaxis.set_major_locator(MaxNLocator(4))
    bars[-1].ax.xaxis.set_major_formatter(lambda x, _: f"{10**x:.1e}".replace("e-0", "e-"))
    _add_legend(figure, class_names, colors, with_truth)
    figure.savefig(path, dpi=dpi)


def _log10(residual: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(residual, 1e-12))


def _draw_row(
    axes: list[Axes],
    row: Row,
    colors: tuple[Color, ...],
    limits: tuple[float, float],
    with_truth: bool,
) -> list[AxesImage]:
    """Draws one row of panels, and returns those of the confidence and of the residual."""
    panels = [row.image]
    if with_truth:
        blank = np.full(row.prediction.shape, -1)
        panels.append(colorize(blank if row.truth is None else row.truth, colors))
    panels.append(colorize(row.prediction, colors))
    for axis, panel in zip(axes, panels):
        axis.imshow(panel, interpolation="nearest")
    axes[0].set_ylabel(row.name, fontsize=9)
    axes[len(panels) - 1].set_xlabel(row.caption, fontsize=9)
    low, high = limits
    return [
        axes[-2].imshow(row.confidence, cmap="viridis", vmin=0, vmax=1),
        axes[-1].imshow(_log10(row.residual), cmap="magma", vmin=low, vmax=high),
    ]


def _add_legend(
    figure: Figure, class_names: tuple[str, ...], colors: tuple[Color, ...], with_truth: bool
) -> None:
    from matplotlib.patches import Patch

    entries = [*zip(class_names, colors, strict=True)]
    if with_truth:
        entries.append(("not labelled", (0, 0, 0)))
    handles = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="grey", linewidth=0.5, label=name)
        for name, (r, g, b) in entries
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(entries), 12),
        frameon=False,
        fontsize=10,
    )
