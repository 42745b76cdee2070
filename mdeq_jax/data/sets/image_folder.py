"""Images in one folder per class, like torchvision's ImageFolder: train/CLASS/*, val/CLASS/*."""

import pathlib

from absl import logging
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.files import IMAGE_SUFFIXES, FileReader, list_images, require_folders
from mdeq_jax.data.vision.transforms import ClassificationTransform, training_image_size


def load(config: ConfigDict) -> Dataset:
    """Returns the images of a folder. The classes are the folders of train/, sorted by name.

    Args:
        config: `config.data`. `augment` gives random resized crops and mirror images, as for
            ImageNet.

    Raises:
        FileNotFoundError: train/ or val/ is missing, or (unless `on_error="skip"`) a class folder
            is empty.
        ValueError: val/ has a class that train/ does not have.
    """
    check_optional_fields(config, ("convert_to_rgb",))
    root = require_folders(config.data_dir, "image_folder", ("train", "val"))
    size = training_image_size(config)
    names = _class_names(root / "train")
    unknown = sorted(set(_class_names(root / "val")) - set(names))
    if unknown:
        raise ValueError(
            f"{root / 'val' / unknown[0]} is a class that {root / 'train'} does not have "
            f"({len(unknown)} are): the classes are the {len(names)} folders of train/."
        )

    def split(folder, train):
        transform = ClassificationTransform(size, len(names), train, config.convert_to_rgb)
        return DiskSplit(_list(root / folder, names, config.on_error), transform, config.on_error)

    return Dataset(
        name="image_folder",
        task="classification",
        class_names=names,
        image_size=size,
        train=split("train", train=config.augment),
        eval=split("val", train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    if not names:
        raise FileNotFoundError(
            f"{folder} has no folders: it must hold one for each class, with its images."
        )
    return names


def _list(folder, names, on_error):
    paths, labels = [], []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue  # val/ need not have every class
        found = list_images(folder / name)
        if not found:
            message = f"{folder / name} has no images ({', '.join(IMAGE_SUFFIXES)})"
            if on_error != "skip":
                raise FileNotFoundError(
                    f"{message}: add some, remove the folder, or set config.data.on_error='skip' "
                    "to go on without them."
                )
            logging.warning("image_folder: skipped: %s", message)
        paths += [str(path) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise FileNotFoundError(f"{folder} has no images in any of its {len(names)} folders.")
    return FileReader(paths, labels)
