"""Pictures to predict on, in order: those of a folder, or the frames of a video."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from mdeq_jax.data.vision import images
from mdeq_jax.data.vision.unlabelled import list_folder


class Frame(NamedTuple):
    """A picture.

    Attributes:
      name: its path in the folder; of a video's frame, NAME_NUMBER.png.
      image: uint8 [H, W, 3], RGB.
    """

    name: str
    image: np.ndarray


class Frames(NamedTuple):
    """Pictures that are read as they are asked for.

    Attributes:
      count: how many, damaged ones included; of a video, as its header says.
      frames: the pictures.
    """

    count: int
    frames: Iterator[Frame]


def read_frames(source: str | pathlib.Path, on_error: str = "raise") -> Frames:
    """Returns the pictures of a folder and its subfolders, by name, or the frames of a video.

    What is not RGB is converted.

    Args:
      source: a folder of JPEG and PNG files, or a video file that OpenCV can read.
      on_error: "raise", or "skip": damaged pictures of a folder are reported and left out.

    Raises:
      FileNotFoundError: there is nothing there, or no picture in it.
      ValueError: the file is not a video that can be read, or two pictures of the folder differ in
        their suffix alone; while reading, a damaged picture.
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
            data = path.read_bytes()
            images.read_header(data, str(path))
            image = images.decode_rgb(data, str(path))
        except images.ExampleError as error:
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
