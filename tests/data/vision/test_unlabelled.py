"""Images without labels for data sets in memory."""

import cv2
import numpy as np
import pytest

from mdeq_jax.data import Dataset
from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.unlabelled import read_for_evaluation


class InMemory:
    in_memory = True

    def __len__(self):
        return 1

    def make_batch(self, indices, key):
        raise NotImplementedError


def test_a_truncated_image_is_refused(tmp_path, monkeypatch):
    """Also where OpenCV would fill the rest with grey, as some versions do."""
    split = InMemory()
    dataset = Dataset(
        "memory", "classification", split, split, ("a",), mean=(0,) * 3, std=(1,) * 3,
        image_size=(8, 8),
    )  # fmt: skip
    path = tmp_path / "half.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    path.write_bytes(data)
    assert read_for_evaluation(path, dataset).shape == (8, 8, 3)
    path.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ExampleError, match=r"half\.jpg: truncated JPEG"):
        read_for_evaluation(path, dataset)
