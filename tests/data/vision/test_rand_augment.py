"""RandAugment's operations against Pillow's."""

import numpy as np
import pytest

from mdeq_jax.data.vision import rand_augment as ra

ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    smooth = np.linspace(20, 190, 24)[:, None, None] + 40 * rng.random((24, 20, 3))
    return smooth.astype(np.uint8)


POINTWISE = {
    "auto_contrast": lambda im, s: ImageOps.autocontrast(im),
    "equalize": lambda im, s: ImageOps.equalize(im),
    "invert": lambda im, s: ImageOps.invert(im),
    "posterize": lambda im, s: ImageOps.posterize(im, int(4 * s)),
    "solarize": lambda im, s: ImageOps.solarize(im, int(256 * s)),
    "color": lambda im, s: ImageEnhance.Color(im).enhance(1.8 * s + 0.1),
    "contrast": lambda im, s: ImageEnhance.Contrast(im).enhance(1.8 * s + 0.1),
    "brightness": lambda im, s: ImageEnhance.Brightness(im).enhance(1.8 * s + 0.1),
    "sharpness": lambda im, s: ImageEnhance.Sharpness(im).enhance(1.8 * s + 0.1),
}


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("name", POINTWISE)
def test_as_pillow(image, name, strength):
    expected = np.asarray(POINTWISE[name](Image.fromarray(image), strength))
    actual = ra.OPERATIONS[name](image, strength, 1.0, None)
    assert actual.dtype == np.uint8
    blends = name in ("color", "contrast", "brightness", "sharpness")  # Pillow rounds twice
    assert np.abs(actual.astype(int) - expected).max() <= (2 if blends else 0)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_as_pillow(image, name):
    """Bilinear, with the middle of a pixel at a whole number."""
    height, width = image.shape[:2]
    shifts = {
        "shear_x": (1, 0.3, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3, 1, 0),
        "translate_x": (1, 0, 0.45 * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * height),
    }
    pillow = Image.fromarray(image)
    if name == "rotate":
        expected = pillow.rotate(30, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
    else:
        expected = pillow.transform(
            (width, height),
            Image.Transform.AFFINE,
            shifts[name],
            Image.Resampling.BILINEAR,
            fillcolor=(128,) * 3,
        )
    actual = ra.OPERATIONS[name](image, 1.0, 1.0, None)
    difference = np.abs(actual.astype(int) - np.asarray(expected))
    assert np.median(difference) <= 4 and np.mean(difference > 24) < 0.12


def test_there_are_sixteen_and_all_keep_the_kind_of_image(image):
    assert len(ra.OPERATIONS) == 16
    rng = np.random.default_rng(0)
    for operation in ra.OPERATIONS.values():
        for magnitude in range(15):
            result = operation(image, magnitude / 10, -1.0, rng)
            assert result.shape == image.shape and result.dtype == np.uint8


def test_magnitude_zero_and_the_draws(image):
    for name in ("rotate", "shear_x", "translate_y", "solarize_add", "cutout"):
        result = ra.OPERATIONS[name](image, 0.0, 1.0, np.random.default_rng(0))
        np.testing.assert_array_equal(result, image)
    draws = [
        ra.RandAugment(operations=2, magnitude=14)(image, np.random.default_rng(3))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*draws)
    assert (draws[0] != image).any()
    same = ra.RandAugment(operations=0, magnitude=14)(image, np.random.default_rng(3))
    np.testing.assert_array_equal(same, image)
