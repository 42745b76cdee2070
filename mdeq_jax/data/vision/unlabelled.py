"""Images without labels, transformed like those of an evaluation split."""

import pathlib

import numpy as np

from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.disk_split import Record
from mdeq_jax.data.vision.files import read_file
from mdeq_jax.data.vision.folders import (
    IMAGE_SUFFIXES,
    describe_left_out,
    find_images,
    report_left_out,
)
from mdeq_jax.data.vision.preprocessing import Preprocessing
from mdeq_jax.data.vision.transforms import ClassificationTransform


def list_folder(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns the JPEG and PNG files of a folder and its subfolders, sorted by name.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no images.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: name one that holds images.")
    found = find_images(folder, recursive=True)
    if not found.images:
        others = f"; it holds {describe_left_out(found.left_out)}" if found.left_out else ""
        raise FileNotFoundError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}){others}.")
    report_left_out(str(folder), found.left_out)
    return found.images


def read_for_evaluation(path: pathlib.Path, preprocessing: Preprocessing) -> np.ndarray:
    """Returns an image as the evaluation of a classifier would transform it.

    The shorter side is resized, and the middle is cut out. An image that is not RGB is converted.

    Args:
        path: a JPEG or PNG file.
        preprocessing: of the data set that the classifier was trained on.

    Returns:
        float32 `[H, W, 3]`, normalised.

    Raises:
        ExampleError: the file cannot be read or decoded. It is a ValueError.
    """
    transform = ClassificationTransform(
        preprocessing.image_size,
        num_classes=1,
        train=False,
        convert_to_rgb=True,
        crop_fraction=preprocessing.crop_fraction,
    )
    image, _ = transform(Record(str(path), read_file(path), 0), np.random.default_rng(0))
    return augment.normalize(image[None], preprocessing.mean, preprocessing.std)[0]
