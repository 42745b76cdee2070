"""Images in one folder per class, like torchvision's ImageFolder: train/CLASS/*, val/CLASS/*."""

import os
import pathlib
import unicodedata
from collections import Counter

from absl import logging
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields
from mdeq_jax.data.vision import rand_augment
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.files import FileReader, require_folders
from mdeq_jax.data.vision.folders import (
    IMAGE_SUFFIXES,
    describe_left_out,
    find_images,
    is_hidden,
    report_left_out,
)
from mdeq_jax.data.vision.transforms import ClassificationTransform, training_image_size


def load(config: ConfigDict) -> Dataset:
    """Returns the images of a folder. The classes are the folders of train/, sorted by name.

    Images in subfolders of a class belong to the class. Hidden folders are no classes. The files
    that are not taken are counted in one line. Two forms of a name in Unicode are one class.

    Args:
        config: `config.data`. `augment` gives random resized crops and mirror images, as for
            ImageNet. `eval_split` is a folder of `data_dir`, "val" if None, or any other folder.
            The classes are those of train/ in any case.

    Raises:
        FileNotFoundError: train/ or the evaluation folder is missing, or (unless
            `on_error="skip"`) a class folder is empty.
        ValueError: the evaluation folder has a class that train/ does not have, or the names
            of two classes differ only in their Unicode form.
    """
    supported = ("convert_to_rgb", "crop_fraction", "eval_split", *rand_augment.FIELDS)
    check_optional_fields(config, supported)
    eval_split = os.path.expanduser(config.eval_split or "val")
    root = require_folders(config.data_dir, "image_folder", ("train", eval_split))
    size = training_image_size(config)
    classes = _class_folders(root / "train")
    names = tuple(path.name for path in classes.values())
    evaluated = _class_folders(root / eval_split)
    unknown = [evaluated[form] for form in evaluated if form not in classes]
    if unknown:
        raise ValueError(
            f"{unknown[0]} is a class that {root / 'train'} does not have "
            f"({len(unknown)} are): the classes are the {len(names)} folders of train/."
        )

    def split(folder, train):
        transform = ClassificationTransform.from_config(
            config, len(names), train=train, convert_to_rgb=config.convert_to_rgb
        )
        reader = _list(root / folder, classes, config.on_error)
        return DiskSplit(reader, transform, config.on_error)

    validation = split(eval_split, train=False)
    return Dataset(
        name="image_folder",
        task="classification",
        class_names=names,
        image_size=size,
        train=split("train", train=True),
        eval=validation,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_fraction=validation.transform.crop_fraction,
    )


def _class_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{name in composed Unicode: folder}, sorted by the names on disk."""
    folders = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)):
        other = folders.setdefault(unicodedata.normalize("NFC", path.name), path)
        if other is not path:
            raise ValueError(
                f"{folder} has two folders that look the same and differ in their Unicode form, "
                f"{other.name!a} and {path.name!a}: move the images of one to the other."
            )
    if not folders:
        raise FileNotFoundError(
            f"{folder} has no folders: it must hold one for each class, with its images."
        )
    return folders


def _list(folder, classes, on_error):
    paths, labels, here = [], [], _class_folders(folder)
    left_out = _outside(folder)
    for label, form in enumerate(classes):
        if form not in here:
            continue  # val/ need not have every class
        found = find_images(here[form], recursive=True)
        left_out += found.left_out
        if not found.images:
            others = f"; it holds {describe_left_out(found.left_out)}" if found.left_out else ""
            message = f"{here[form]} has no images ({', '.join(IMAGE_SUFFIXES)}){others}"
            if on_error != "skip":
                raise FileNotFoundError(
                    f"{message}: add some, remove the folder, or set config.data.on_error='skip' "
                    "to go on without them."
                )
            logging.warning("image_folder: skipped: %s", message)
        paths += [str(path) for path in found.images]
        labels += [label] * len(found.images)
    report_left_out(f"image_folder ({folder.name})", left_out)
    if not paths:
        raise FileNotFoundError(f"{folder} has no images in any of its {len(classes)} folders.")
    return FileReader(paths, labels)


def _outside(folder: pathlib.Path) -> Counter[str]:
    """Counts the files that are in no class folder."""
    left_out = Counter()
    for entry in folder.iterdir():
        if entry.is_dir() and is_hidden(entry.name):
            found = find_images(entry, recursive=True)
            left_out["hidden"] += len(found.images) + found.left_out.total()
        elif not entry.is_dir():
            left_out["hidden" if is_hidden(entry.name) else "outside the class folders"] += 1
    return +left_out
