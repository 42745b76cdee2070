"""Warm starts from frame to frame, without a network."""

import numpy as np

from mdeq_jax.data.vision.frames import Frame
from mdeq_jax.tasks.segmentation.predict import predict_all
from mdeq_jax.tasks.segmentation.segmenter import Prediction


def test_evaluations_to_a_residual():
    trace = np.array([0.5, 0.2, 0.3, 0.1, np.nan])
    solve = Prediction(None, None, 5, 0.1, True, 4, trace)
    assert [solve.nfe_to(r) for r in (0.9, 0.5, 0.25, 0.1, 0.01)] == [2, 2, 3, 5, 5]
    at_once = Prediction(None, None, 1, 0.05, True, 0, np.full(5, np.nan))
    assert at_once.nfe_to(0.1) == 1


def test_a_frame_of_another_size_starts_from_zero():
    sizes = [(2, 3, 3), (2, 3, 3), (4, 3, 3), (4, 3, 3)]
    frames = [Frame(str(i), np.full(size, i, np.uint8)) for i, size in enumerate(sizes)]

    def segmenter(image, z0=None):
        return ("from", z0), int(image[0, 0, 0])  # the equilibrium is the frame's number

    warm = [prediction[1] for _, prediction, _, _ in predict_all(segmenter, iter(frames))]
    assert warm == [None, 0, None, 2]
