"""Pictures without labels, in order: those of a folder, or the frames of a video."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from mdeq_jax.data.vision import decoding
from mdeq_jax.data.vision.files import read_file
from mdeq_jax.data.vision.unlabelled import list_folder


class Frame(NamedTuple):
    """A picture.

    Attributes:
        name: its path in the folder; NAME_NUMBER.png for a frame of a video.
        image: uint8 `[H, W, 3]`, RGB.
    """

    name: str
    image: np.ndarray


class Frames(NamedTuple):
    """Pictures that are read on demand.

    Attributes:
        num_frames: number of pictures, including damaged ones; for a video, from its header.
        frames: the pictures.
    """

    num_frames: int
    frames: Iterator[Frame]


def read_frames(source: str | pathlib.Path, on_error: str = "raise") -> Frames:
    """Returns the pictures of a folder and its subfolders, sorted by name, or a video's frames.

    Pictures that are not RGB are converted.

    Args:
        source: a folder of JPEG and PNG files, or a video file that OpenCV can read.
        on_error: "raise", or "skip", which reports the damaged pictures of a folder and omits them.

    Raises:
        FileNotFoundError: nothing is there, or the folder has no pictures.
        ValueError: OpenCV cannot read the video, or two pictures of the folder differ only in their
            suffix. A damaged picture raises it when it is read.
    """
    source = pathlib.Path(source)
    if source.is_file():
        return _video(source)
    paths = list_folder(source)
    seen = {}
    for path in paths:
        other = seen.setdefault(path.with_suffix(""), path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would have the same results: rename or remove one of them."
            )
    return Frames(len(paths), _pictures(paths, source, on_error))


def _pictures(paths, folder, on_error):
    for path in paths:
        try:
            data = read_file(path)
            decoding.read_header(data, str(path))
            image = decoding.decode_rgb(data, str(path))
        except decoding.ExampleError as error:
            if on_error != "skip":
                raise
            logging.warning("skipped a picture: %s", error)
            continue
        yield Frame(str(path.relative_to(folder)), image)


def _video(path: pathlib.Path) -> Frames:
    import cv2

    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    if count < 1:
        raise ValueError(
            f"{path}: not a video that OpenCV can read. Name a folder of JPEG and PNG files, or "
            "convert the video (ffmpeg -i VIDEO NAME.mp4)."
        )

    def frames():
        number = 0
        while True:
            found, image = video.read()
            if not found:
                break
            number += 1
            yield Frame(f"{path.stem}_{number:06d}.png", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        video.release()

    return Frames(count, frames())
