"""Inference on whole images in every way, with a network that classifies colours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD
from mdeq_jax.layers import resize_bilinear
from mdeq_jax.models import ModelOutput
from mdeq_jax.solvers import Solution
from mdeq_jax.tasks.segmentation.inference import (
    network_input,
    pad_to_multiple,
    segment,
    to_image_size,
    windows,
)
from mdeq_jax.tasks.segmentation.settings import InferenceSettings

FACTOR = 8
# No mixture of two of them is nearer to a third.
PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)


def normalized(image):
    """uint8 `[H, W, 3]` to `[1, H, W, 3]`, as the networks are trained with."""
    return augment.normalize(image[None], IMAGENET_MEAN, IMAGENET_STD)


class ColorModel:
    """Classifies each pixel by its colour; its report identifies the image that it was given."""

    def apply(self, variables, images, forward=None):
        assert images.shape[1] % FACTOR == images.shape[2] % FACTOR == 0
        colors = jnp.asarray(normalized(PALETTE[None]))[:, :, None]  # [1, 1, 1, classes, 3]
        distance = jnp.sum((images[..., None, :] - colors) ** 2, axis=-1)
        batch = images.shape[0]
        row = jnp.full(batch, images.shape[2], jnp.float32) + jnp.mean(images, axis=(1, 2, 3))
        solution = Solution(
            z=jnp.zeros((batch, 7)),
            residual=row,
            rel_residual=row,
            steps=jnp.ones(batch, jnp.int32),
            nfe=jnp.int32(3),
            status=jnp.zeros(batch, jnp.int32),
            abs_trace=jnp.zeros((5, batch)),
            rel_trace=jnp.zeros((5, batch)),
        )
        return ModelOutput(-30 * distance, solution)


def color_map(height, width, seed, block=5):
    """Classes in blocks, `[2, H, W]`."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, len(PALETTE), (2, height // block + 1, width // block + 1))
    return blocks.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]


def as_images(classes):
    return jnp.concatenate([normalized(PALETTE[c]) for c in classes])


WAYS = {
    "whole": {},
    "flip": dict(flip=True),
    "scales": dict(scales=(0.5, 1.0, 2.0)),
    "larger": dict(scales=(1.5, 2.0), flip=True),
    "windows": dict(window=(16, 24), stride=(8, 16)),
    "windows larger than the image": dict(window=(64, 24), stride=(32, 24)),
    "windows, each pixel once": dict(window=(8, 8), stride=(8, 8)),
    "all": dict(scales=(0.75, 1.0, 1.5), flip=True, window=(24, 32), stride=(16, 21)),
}


def run(images, settings, model=None):
    """`segment`, compiled."""
    segment_with = partial(segment, model or ColorModel(), {}, settings=settings)
    return jax.jit(segment_with)(images)


@pytest.mark.parametrize(
    ("way", "size"), [*((way, (33, 50)) for way in WAYS), ("whole", (32, 48)), ("all", (40, 24))]
)
def test_gives_back_the_map(way, size):
    classes = color_map(*size, seed=1)
    logits, solution, *_ = run(as_images(classes), InferenceSettings(FACTOR, **WAYS[way]))
    assert logits.shape == (2, *size, len(PALETTE))
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), classes)
    assert solution.rel_residual.shape == solution.status.shape == (2,)


def test_probabilities_are_averaged():
    """Of two views that disagree the surer one wins: means of probabilities, not of logits."""
    images = as_images(color_map(16, 16, seed=0))

    class Disagreeing(ColorModel):
        def apply(self, variables, images, forward=None):
            out = super().apply(variables, images)
            larger = images.shape[1] > 16
            logits = jnp.array([0.0, 4.0]) if larger else jnp.array([2.0, 0.0])
            return out._replace(logits=jnp.broadcast_to(logits, (*images.shape[:3], 2)))

    logits = run(images, InferenceSettings(FACTOR, scales=(1.0, 2.0)), Disagreeing()).logits
    sure, other = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-2))
    expected = np.array([1 - sure + other, sure + 1 - other]) / 2
    np.testing.assert_allclose(jnp.exp(logits)[0, 0, 0], expected, rtol=1e-5)


def test_the_report_is_of_the_scale_nearest_to_one_not_mirrored():
    images = as_images(color_map(16, 24, seed=0))
    settings = InferenceSettings(FACTOR, scales=(0.5, 1.0, 2.0), flip=True)
    solution = run(images, settings).solution
    single = run(images, InferenceSettings(FACTOR)).solution
    np.testing.assert_allclose(solution.rel_residual, single.rel_residual, rtol=1e-6)
    assert solution.nfe == 3 and solution.rel_trace.shape == (5, 2)


def test_with_windows_the_report_is_of_the_worst():
    images = as_images(color_map(16, 32, seed=0))
    settings = InferenceSettings(FACTOR, window=(16, 16), stride=(16, 8), flip=True)
    solution = run(images, settings).solution
    parts = [images[:, :, left : left + 16] for left in (0, 8, 16)]
    residuals = [ColorModel().apply({}, part).solution.rel_residual for part in parts]
    np.testing.assert_allclose(solution.rel_residual, np.max(residuals, axis=0), rtol=1e-6)
    assert solution.nfe == 9


def test_padding_repeats_the_last_pixels_at_the_bottom_and_right():
    images = as_images(color_map(13, 15, seed=0))
    padded = pad_to_multiple(images, FACTOR)
    assert padded.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(padded[:, :13, :15], images)
    np.testing.assert_array_equal(padded[:, 13:, :15], np.repeat(images[:, 12:], 3, axis=1))
    np.testing.assert_array_equal(padded[:, :, 15:], padded[:, :, 14:15])


@pytest.mark.parametrize("size", [(10, 31), (24, 40), (40, 16)])
def test_windows_cover_every_pixel_and_lie_inside(size):
    window, corners = windows(size, (16, 24), (11, 17))
    seen = np.zeros(size, int)
    for top, left in corners:
        part = seen[top : top + window[0], left : left + window[1]]
        assert part.shape == window
        part += 1
    assert seen.min() == 1 or len(corners) == 1
    assert len(set(corners)) == len(corners)


BAD = [
    ({"scales": ()}, r"eval\.scales=\(\) must be one or more numbers above 0"),
    ({"scales": (1.0, -1.0)}, r"eval\.scales=\(1\.0, -1\.0\) must be"),
    ({"scales": (float("inf"),)}, r"eval\.scales=\(inf,\) must be"),
    ({"scales": ("half",)}, r"eval\.scales=\('half',\) must be"),
    ({"window": (16,)}, r"eval\.window=\(16,\) must be two whole numbers of pixels"),
    ({"window": (16, 16), "stride": (8.0, 8)}, r"eval\.stride=\(8\.0, 8\) must be two whole"),
    ({"stride": (8, 8)}, "no effect without eval.window"),
    (
        {"window": (16, 20)},
        r"eval\.window=\(16, 20\) must be \(height, width\), both multiples of 8",
    ),
    ({"window": (16, 16), "stride": (8, 17)}, r"eval\.stride=\(8, 17\) must be"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_bad_settings(fields, message):
    config = default.get_config()
    config.model.channels, config.model.downsample_times = (8, 8), 2
    config.eval.update(fields)
    with pytest.raises(ValueError, match=message):
        InferenceSettings.from_config(config)


def test_stride_is_two_thirds_of_the_window():
    config = default.get_config()
    config.model.downsample_times = 2
    config.eval.window = (24, 48)
    settings = InferenceSettings.from_config(config)
    assert (settings.factor, settings.stride) == (8, (16, 32))


def test_none_on_the_command_line_is_none():
    config = default.get_config()
    config.eval.window = config.eval.stride = (None,)  # what absl's flags make of it
    assert InferenceSettings.from_config(config).single_pass


def test_what_the_network_sees_and_back():
    """Scaled, then padded to what it can halve; logits come back without the padding."""
    classes = color_map(36, 52, seed=2, block=6)
    settings = InferenceSettings(FACTOR, scales=(0.5, 3.0))
    inputs = network_input(as_images(classes), settings)
    assert inputs.shape == (2, 24, 32, 3)
    half = resize_bilinear(as_images(classes), (18, 26))
    np.testing.assert_array_equal(inputs[:, :18, :26], half)
    logits = to_image_size(ColorModel().apply({}, inputs), (36, 52), settings).logits
    right = jnp.argmax(logits, axis=-1) == classes
    assert logits.shape == (2, 36, 52, len(PALETTE)) and right.mean() > 0.8
