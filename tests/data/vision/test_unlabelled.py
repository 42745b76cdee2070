"""Images without labels, as the evaluation of a classifier transforms them."""

import cv2
import numpy as np
import pytest

from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.preprocessing import Preprocessing
from mdeq_jax.data.vision.unlabelled import read_for_evaluation


def test_a_truncated_image_is_refused(tmp_path, monkeypatch):
    """Also where OpenCV would fill the rest with grey, as some versions do."""
    preprocessing = Preprocessing(("a",), (8, 8), (0.0,) * 3, (1.0,) * 3, crop_fraction=1.0)
    path = tmp_path / "half.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    path.write_bytes(data)
    assert read_for_evaluation(path, preprocessing).shape == (8, 8, 3)
    path.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ExampleError, match=r"half\.jpg: truncated JPEG"):
        read_for_evaluation(path, preprocessing)
