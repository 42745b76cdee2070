"""Coloured maps, overlays and the contact sheet."""

import cv2
import numpy as np
import pytest

from mdeq_jax.viz.segmentation import Row, colorize, contact_sheet, overlay

COLORS = ((255, 0, 0), (0, 200, 0), (10, 20, 30))


def test_every_class_in_its_colour_and_the_rest_black():
    classes = np.array([[0, 1, 2], [255, -1, 3]])
    expected = [[*COLORS], [(0, 0, 0)] * 3]
    np.testing.assert_array_equal(colorize(classes, COLORS), np.array(expected, np.uint8))
    assert colorize(classes, COLORS, other=(9, 9, 9))[1, 0].tolist() == [9, 9, 9]


def test_overlay_mixes():
    image, colored = np.full((1, 2, 3), 100, np.uint8), np.full((1, 2, 3), 255, np.uint8)
    assert overlay(image, colored, opacity=0.2).tolist() == [[[131] * 3] * 2]
    np.testing.assert_array_equal(overlay(image, colored, opacity=0.0), image)
    np.testing.assert_array_equal(overlay(image, colored, opacity=1.0), colored)


def row(truth):
    rng = np.random.default_rng(0)
    classes = np.tile([0, 1, 2, 2], (12, 4))
    return Row(
        name="picture",
        image=rng.integers(0, 256, (12, 16, 3), np.uint8),
        truth=np.where(rng.random((12, 16)) < 0.1, 255, classes) if truth else None,
        prediction=classes,
        confidence=rng.random((12, 16)),
        residual=10 ** rng.uniform(-5, -3, (6, 8)),
        caption="as said",
    )


@pytest.mark.parametrize("truth", [True, False])
def test_contact_sheet(tmp_path, truth):
    """The classes' colours are there in about the share that the maps have of the sheet."""
    path = tmp_path / "sheet.png"
    contact_sheet(path, [row(truth), row(False)], ("a", "b", "c"), COLORS, title="title", dpi=60)
    sheet = cv2.imread(str(path))[..., ::-1]
    panels = 5 if truth else 4
    assert abs(sheet.shape[1] - 60 * 3 * panels) <= 2
    maps = 3 if truth else 2
    red = (sheet == COLORS[0]).all(axis=-1).mean() * sheet.shape[0] * sheet.shape[1]
    panel = (60 * 3) ** 2 * 12 / 16
    assert 0.6 * maps / 4 < red / panel < 1.1 * maps / 4


def test_a_sheet_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet(tmp_path / "sheet.png", [], (), ())
