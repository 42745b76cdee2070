"""Predictions written as pictures: label ids, colours, overlays, and a sheet of some."""

from pathlib import Path

import numpy as np

from mdeq_jax.data import LabelClass
from mdeq_jax.data.vision.folders import IMAGE_SUFFIXES
from mdeq_jax.viz.segmentation import Row, colorize, contact_sheet, overlay


class Pictures:
    """Writes the pictures of predictions into a folder."""

    def __init__(self, out_dir: str | Path, classes: tuple[LabelClass, ...]):
        """Makes the folder.

        Args:
            out_dir: folder.
            classes: in the order of their train ids.
        """
        self._dir, self._classes, self._rows, self._names = Path(out_dir), classes, [], {}
        self._ids = np.array([c.id for c in classes], np.uint8)
        self._dir.mkdir(parents=True, exist_ok=True)

    def write(self, file: str, image: np.ndarray, prediction: np.ndarray) -> str:
        """Writes one prediction in three ways.

        Args:
            file: path of the picture, relative to its folder; Cityscapes' `_leftImg8bit` is left
                out of the results' names, as its server wants it.
            image: uint8 `[H, W, 3]`.
            prediction: int `[H, W]`, train ids.

        Returns:
            The name of the picture, without suffix.

        Raises:
            ValueError: another picture has the same name.
        """
        relative = Path(file)
        # The id of an example of a prepared data set may hold a dot, but has no suffix.
        name = relative.stem if relative.suffix.lower() in IMAGE_SUFFIXES else relative.name
        name = name.removesuffix("_leftImg8bit")
        key = str(relative.with_name(name))
        if key in self._names:
            raise ValueError(
                f"{file} and {self._names[key]} would have the same results: rename one of them."
            )
        self._names[key] = file
        colored = colorize(prediction, tuple(c.color for c in self._classes))
        for kind, picture in (
            ("labelIds", self._ids[prediction]),
            ("color", colored),
            ("overlay", overlay(image, colored)),
        ):
            folder = {"labelIds": "label_ids"}.get(kind, kind)
            write_png(self._dir / folder / relative.parent / f"{name}_pred_{kind}.png", picture)
        return name

    def show(self, row: Row) -> None:
        """Adds a row to the contact sheet."""
        self._rows.append(row)

    def close(self, title: str) -> None:
        """Draws the contact sheet, if there is anything to show."""
        if self._rows:
            names, colors = zip(*((c.name, c.color) for c in self._classes))
            contact_sheet(self._dir / "contact_sheet.png", self._rows, names, colors, title=title)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 `[H, W]` or RGB `[H, W, 3]`.

    Raises:
        OSError: it cannot be written.
    """
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
