"""The transforms of arrays against their definitions."""

import numpy as np
import pytest

from mdeq_jax.data.sets.cifar10 import MEAN, STD
from mdeq_jax.data.vision import augment
from tests.helpers.synthetic_images import picture


def test_normalize():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)
    out = augment.normalize(images, MEAN, STD)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (images / 255 - MEAN) / np.array(STD), atol=1e-6)
    given = np.empty_like(out)
    assert augment.normalize(images, MEAN, STD, out=given) is given
    np.testing.assert_array_equal(given, out)
    mirrored = augment.normalize(images[:, :, ::-1], MEAN, STD)
    np.testing.assert_array_equal(mirrored, out[:, :, ::-1])


def test_shift_and_flip_is_a_crop_of_the_padded_image():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (300, 32, 32, 3), np.uint8)
    draws = rng.random((300, 3), dtype=np.float32)
    out = augment.shift_and_flip(images, draws, pad=4, flip=True)
    tops, lefts = np.floor(draws[:, 0] * 9).astype(int), np.floor(draws[:, 1] * 9).astype(int)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        padded = np.pad(images[i], ((4, 4), (4, 4), (0, 0)))
        crop = padded[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(out[i], crop[:, ::-1] if draws[i, 2] < 0.5 else crop)
    assert set(tops) == set(lefts) == set(range(9))


def test_shift_and_flip_at_the_ends_of_the_draws():
    images = picture(8, 8)[None]
    last = np.full((1, 3), np.nextafter(np.float32(1), np.float32(0)))
    for draws in (np.zeros((1, 3), np.float32), last):
        assert augment.shift_and_flip(images, draws, pad=4, flip=True).shape == images.shape


def boxes(height, width, count=4000):
    rng = np.random.default_rng(0)
    return np.array([augment.random_resized_crop_box(height, width, rng) for _ in range(count)])


def test_crop_boxes_lie_inside_and_have_the_ratios_and_areas_asked_for():
    top, left, height, width = boxes(300, 400).T
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 300 and (left + width).max() <= 400
    assert 0.74 < (width / height).min() and (width / height).max() < 1.35
    area = height * width / (300 * 400)
    assert 0.079 < area.min() and area.max() <= 1
    # Of the small boxes, which always fit, area and log ratio are uniform.
    small = area < 0.5
    log_ratio = np.log(width / height)[small] / np.log(4 / 3)
    assert abs(area[small].mean() - 0.29) < 0.01 and abs(log_ratio.mean()) < 0.04
    assert abs(area[small].std() - 0.42 / 12**0.5) < 0.01
    assert abs(log_ratio.std() - 1 / 3**0.5) < 0.03
    # The place is uniform among those where the box fits.
    assert abs((top / np.maximum(300 - height, 1)).mean() - 0.5) < 0.02


def test_crop_boxes_have_torchvisions_statistics():
    """torchvision's published algorithm, here over many draws at once instead of a loop."""
    rng = np.random.default_rng(1)
    area = 256 * 340 * rng.uniform(0.08, 1, (20000, 10))
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), area.shape))
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (width <= 340) & (height <= 256)
    rows = np.arange(20000)[fits.any(1)]
    first = fits.argmax(1)[rows]
    expected = np.stack([height[rows, first], width[rows, first]])
    ours = boxes(256, 340, 8000)[:, 2:].T
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        np.testing.assert_allclose(
            np.quantile(ours, quantile, axis=1), np.quantile(expected, quantile, axis=1), rtol=0.02
        )


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13))]
)
def test_crop_box_falls_back_to_the_centre(size, box):
    class LargestArea:
        def uniform(self, low, high):
            return high

    assert augment.random_resized_crop_box(*size, LargestArea()) == box


def test_resize_does_not_alias():
    stripes = np.zeros((240, 240, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(augment.resize(stripes, 100, 100)[:, 1:-1].astype(int)) < 60
    image = picture(50, 60)
    assert augment.resize(image, 224, 200).shape == (224, 200, 3)
    np.testing.assert_array_equal(augment.resize(image, 50, 60), image)


@pytest.mark.parametrize(
    ("size", "shorter", "expected"),
    [((375, 500), 256, (256, 341)), ((500, 375), 256, (341, 256)), ((9, 9), 4, (4, 4))],
)
def test_shorter_side_size(size, shorter, expected):
    assert augment.shorter_side_size(*size, shorter) == expected


def test_labels_are_resized_to_nearest_and_images_bilinearly():
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 9
    image = np.repeat(label[..., None] * 20, 3, axis=-1)
    for long_side in (33, 90, 157):
        resized, labels = augment.resize_pair(image, label, long_side)
        assert labels.shape == resized.shape[:2] == (int(40 * long_side / 60 + 0.5), long_side)
        assert set(np.unique(labels)) == {0, 9}
    assert len(np.unique(resized)) > 2  # between the two values
    tall = augment.resize_pair(image.transpose(1, 0, 2), label.T, 90)[1]
    assert tall.shape == (90, 60)


def test_pad_and_crop():
    image, label = picture(10, 20), np.ones((10, 20), np.uint8)
    padded = augment.pad_to(image, 16, 16, value=0)
    assert padded.shape == (16, 20, 3)
    np.testing.assert_array_equal(padded[:10], image)
    assert not padded[10:].any()
    repeated = augment.pad_to(image, 12, 23, value=None)
    np.testing.assert_array_equal(repeated[10:, :20], np.stack([image[9], image[9]]))
    np.testing.assert_array_equal(repeated[:, 20:], np.repeat(repeated[:, 19:20], 3, axis=1))
    assert (augment.pad_to(label, 16, 16, value=255)[10:] == 255).all()
    np.testing.assert_array_equal(augment.center_crop(image, 4, 10), image[3:7, 5:15])


def test_random_crop_boxes_reach_every_place():
    rng = np.random.default_rng(0)
    drawn = [augment.random_crop_box((6, 4), (4, 4), rng) for _ in range(100)]
    assert {rows.start for rows, _ in drawn} == {0, 1, 2}
    assert {(columns.start, columns.stop) for _, columns in drawn} == {(0, 4)}
    assert augment.random_crop_box((2, 3), (4, 4), rng) == (slice(0, 4), slice(0, 4))
