"""Fixtures of the data tests: synthetic image files, and the real data if they are present."""

import numpy as np
import pytest

from tests.helpers.synthetic_images import SHARED_DATA, encode, picture, write


def _real(name):
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def cifar_dir():
    return str(_real("tfds/cifar10").parent)


@pytest.fixture(scope="session")
def camvid_dir():
    return str(_real("camvid"))


@pytest.fixture(scope="session")
def imagenet_samples(tmp_path_factory):
    """An image folder whose train/ and val/ are both the samples."""
    samples, root = _real("imagenet_samples"), tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        (root / split).symlink_to(samples)
    return str(root)


@pytest.fixture
def camvid_like(tmp_path):
    """CamVid's layout with 6 training and 3 validation images of 36x48."""
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for i in range(count):
            labels = np.random.default_rng(i).integers(0, 12, (36, 48), np.uint8)
            write(tmp_path / split / f"{i}.jpg", encode(".jpg", picture(36, 48, i)))
            write(tmp_path / f"{split}annot" / f"{i}.png", encode(".png", labels))
    return tmp_path
