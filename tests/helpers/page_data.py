"""Small parts of the real data sets, in the layouts that the documentation pages describe."""

import socket
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from tests.helpers.synthetic_images import SHARED_DATA

NUM_FLOWERS = 17  # classes, as in docs/data.md


def write_flowers(folder: Path) -> None:
    """Two images a class for training and one for evaluation, as docs/data.md lays them out."""
    images = islice(sorted((SHARED_DATA / "imagenet_samples").glob("*/*")), 3 * NUM_FLOWERS)
    for i, image in enumerate(images):
        split = "val" if i < NUM_FLOWERS else "train"
        _link(image, folder / split / f"flower_{i % NUM_FLOWERS:02}" / f"{i}.jpg")


def write_streets(folder: Path) -> None:
    """Four images of CamVid for each split, with the three classes of docs/data.md."""
    table = np.full(256, 255, np.uint8)
    table[3], table[8] = 0, 1  # road, car
    for split, image, label in _camvid(count=4):
        _link(image, folder / split / "images" / image.name)
        path = folder / split / "labels" / label.name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), table[cv2.imread(str(label), cv2.IMREAD_GRAYSCALE)])


def write_camvid(folder: Path) -> None:
    """Four images of CamVid for each split, in its own layout."""
    for split, image, label in _camvid(count=4):
        _link(image, folder / split / image.name)
        _link(label, folder / f"{split}annot" / label.name)


def write_drive(video: Path) -> None:
    """A video of three frames."""
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 5, (480, 360))
    for _, image, _ in islice(_camvid(count=3), 3):
        writer.write(cv2.imread(str(image)))
    writer.release()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _camvid(count: int):
    for split in ("train", "val"):
        for image in islice(sorted((SHARED_DATA / "camvid" / split).glob("*.jpg")), count):
            yield split, image, image.parent.with_name(f"{split}annot") / f"{image.stem}.png"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
