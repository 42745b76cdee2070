"""The files that predictions are written to."""

import numpy as np
import pytest

from mdeq_jax.data.sets import cityscapes
from mdeq_jax.tasks.segmentation.pictures import Pictures


def test_names_with_dots(tmp_path):
    pictures = Pictures(tmp_path, cityscapes.CLASSES)
    image, classes = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)
    for i, file in enumerate(("my.drive_000001.png", "my.drive_000002.png", "v1.5", "v1.6")):
        assert pictures.write(file, image, classes) == file.removesuffix(".png")
        assert len(list((tmp_path / "color").iterdir())) == i + 1


def test_two_pictures_of_one_name(tmp_path):
    pictures = Pictures(tmp_path, cityscapes.CLASSES)
    image, classes = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)
    pictures.write("a/1.png", image, classes)
    pictures.write("b/1.png", image, classes)
    with pytest.raises(ValueError, match=r"a/1\.jpg and a/1\.png would have the same results"):
        pictures.write("a/1.jpg", image, classes)
