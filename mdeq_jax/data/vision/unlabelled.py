"""Images without labels, transformed like those of an evaluation split."""

import dataclasses
import pathlib

import numpy as np

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.vision import augment, decoding
from mdeq_jax.data.vision.disk_split import DiskSplit, Record
from mdeq_jax.data.vision.files import read_file
from mdeq_jax.data.vision.folders import (
    IMAGE_SUFFIXES,
    describe_left_out,
    find_images,
    report_left_out,
)
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


def read_for_evaluation(path: pathlib.Path, dataset: Dataset) -> np.ndarray:
    """Returns an image as the evaluation of `dataset` would transform it.

    For data sets in memory, the shorter side is resized to the data set's size and the middle is
    cut out. For others, the transform is ImageNet's. An image that is not RGB is converted.

    Args:
        path: a JPEG or PNG file.
        dataset: a data set of images.

    Returns:
        float32 `[H, W, 3]`, normalised.

    Raises:
        ExampleError: the file cannot be read or decoded. It is a ValueError.
        ValueError: `dataset` has no images.
    """
    data, size = read_file(path), dataset.image_size
    if size is None or dataset.mean is None or dataset.std is None:
        raise ValueError(f"{dataset.name} is not a data set of images.")
    if dataset.eval.in_memory:
        decoding.read_header(data, str(path))
        image = decoding.decode_rgb(data, str(path))
        height, width = image.shape[:2]
        scaled = augment.shorter_side_size(height, width, max(size))
        image = augment.center_crop(augment.resize(image, *scaled), *size)
    else:
        transform = ClassificationTransform(size, 1, train=False, convert_to_rgb=True)
        if isinstance(dataset.eval, DiskSplit) and isinstance(
            dataset.eval.transform, ClassificationTransform
        ):
            fraction = dataset.eval.transform.crop_fraction
            transform = dataclasses.replace(transform, crop_fraction=fraction)
        image, _ = transform(Record(str(path), data, 0), np.random.default_rng(0))
    return augment.normalize(image[None], dataset.mean, dataset.std)[0]
