"""Cityscapes street scenes: 2,975 train and 500 val images of 2048x1024 pixels, 19 classes.

M. Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, 1604.01685.
"""

import pathlib
from collections import Counter

import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.vision import tfds_records
from mdeq_jax.data.vision.decoding import ExampleError, decode_label_map
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.files import pair_reader, require_folders
from mdeq_jax.data.vision.folders import find_images, is_hidden
from mdeq_jax.data.vision.label_classes import LabelClass, evaluated, train_ids
from mdeq_jax.data.vision.transforms import (
    SEGMENTATION_FIELDS,
    SegmentationTransform,
    label_table,
    training_image_size,
)

BASE_SIZE = 2048
CHECKED_MAPS = 8  # of a split, when it is loaded
TFDS_NAME = "cityscapes/semantic_segmentation"


# All labels of the data set (cityscapesScripts, helpers/labels.py). The benchmark evaluates those
# that are not ignored. The licence plate, -1, is stored as 255 in an 8-bit PNG.
LABELS = (
    LabelClass(0, "unlabeled", (0, 0, 0), "void", ignored=True),
    LabelClass(1, "ego vehicle", (0, 0, 0), "void", ignored=True),
    LabelClass(2, "rectification border", (0, 0, 0), "void", ignored=True),
    LabelClass(3, "out of roi", (0, 0, 0), "void", ignored=True),
    LabelClass(4, "static", (0, 0, 0), "void", ignored=True),
    LabelClass(5, "dynamic", (111, 74, 0), "void", ignored=True),
    LabelClass(6, "ground", (81, 0, 81), "void", ignored=True),
    LabelClass(7, "road", (128, 64, 128), "flat"),
    LabelClass(8, "sidewalk", (244, 35, 232), "flat"),
    LabelClass(9, "parking", (250, 170, 160), "flat", ignored=True),
    LabelClass(10, "rail track", (230, 150, 140), "flat", ignored=True),
    LabelClass(11, "building", (70, 70, 70), "construction"),
    LabelClass(12, "wall", (102, 102, 156), "construction"),
    LabelClass(13, "fence", (190, 153, 153), "construction"),
    LabelClass(14, "guard rail", (180, 165, 180), "construction", ignored=True),
    LabelClass(15, "bridge", (150, 100, 100), "construction", ignored=True),
    LabelClass(16, "tunnel", (150, 120, 90), "construction", ignored=True),
    LabelClass(17, "pole", (153, 153, 153), "object"),
    LabelClass(18, "polegroup", (153, 153, 153), "object", ignored=True),
    LabelClass(19, "traffic light", (250, 170, 30), "object"),
    LabelClass(20, "traffic sign", (220, 220, 0), "object"),
    LabelClass(21, "vegetation", (107, 142, 35), "nature"),
    LabelClass(22, "terrain", (152, 251, 152), "nature"),
    LabelClass(23, "sky", (70, 130, 180), "sky"),
    LabelClass(24, "person", (220, 20, 60), "human"),
    LabelClass(25, "rider", (255, 0, 0), "human"),
    LabelClass(26, "car", (0, 0, 142), "vehicle"),
    LabelClass(27, "truck", (0, 0, 70), "vehicle"),
    LabelClass(28, "bus", (0, 60, 100), "vehicle"),
    LabelClass(29, "caravan", (0, 0, 90), "vehicle", ignored=True),
    LabelClass(30, "trailer", (0, 0, 110), "vehicle", ignored=True),
    LabelClass(31, "train", (0, 80, 100), "vehicle"),
    LabelClass(32, "motorcycle", (0, 0, 230), "vehicle"),
    LabelClass(33, "bicycle", (119, 11, 32), "vehicle"),
    LabelClass(-1, "license plate", (0, 0, 142), "vehicle", ignored=True),
)
CLASSES = evaluated(LABELS)
TRAIN_IDS = train_ids(LABELS, IGNORE_LABEL)

# Weights of the 19 classes in the loss of HRNet and of the original MDEQ.
CLASS_WEIGHTS = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)


def load(config: ConfigDict) -> Dataset:
    """Returns Cityscapes, from the official folders or from a data set prepared by TFDS.

    The official layout is DIR/leftImg8bit/SPLIT/CITY/X_leftImg8bit.png with
    DIR/gtFine/SPLIT/CITY/X_gtFine_labelIds.png; that of TFDS is
    DIR/cityscapes/semantic_segmentation/VERSION. The ids of the 19 evaluated classes become their
    train ids, and all others become `IGNORE_LABEL`.

    Args:
        config: `config.data`; DIR is `data_dir`. `eval_split` is "val" (also if None) or "train".

    Raises:
        FileNotFoundError: neither layout is found, or (unless `on_error="skip"`) a label map is
            missing.
        ValueError: the label maps of a split probably hold train ids.
    """
    check_optional_fields(config, (*SEGMENTATION_FIELDS, "eval_split"))
    eval_split = choose_eval_split(config, ("val", "train"))
    table = label_table(TRAIN_IDS)
    official = (pathlib.Path(config.data_dir) / "leftImg8bit").is_dir()
    readers = _official_readers(config) if official else _tfds_readers(config)

    def split(reader, train):
        transform = SegmentationTransform.from_config(
            config, train, BASE_SIZE, table, check_label_ids
        )
        return DiskSplit(reader, transform, config.on_error)

    return Dataset(
        name="cityscapes",
        task="segmentation",
        class_names=tuple(c.name for c in CLASSES),
        image_size=training_image_size(config),
        train=split(readers["train"], train=True),
        eval=split(readers[eval_split], train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def check_label_ids(labels: np.ndarray, path: str) -> None:
    """Raises ExampleError if a label map probably holds train ids.

    These are 0 to 18 and 255 for ignored pixels. In a map of label ids, 255 is a licence plate, and
    hence next to a vehicle, whose id is 26 or more.

    Args:
        labels: `[H, W]`, as in the file.
        path: name of the file in errors.
    """
    counts = np.bincount(labels.ravel(), minlength=256)
    if counts[255] and not counts[len(CLASSES) : 255].any():
        raise ExampleError(
            f"{path}: its labels, {np.flatnonzero(counts).tolist()}, look like train ids (0 to 18, "
            "255 ignored), but label ids (0 to 33) are required: put the original "
            "gtFine_labelIds.png in its place, or set config.data.on_error='skip'."
        )


def _check_split(labels: list[pathlib.Path], split: str) -> None:
    """Raises ValueError if the label maps of a split probably hold train ids.

    These may lack 255, so a single map is not enough. But street scenes hold vegetation (21),
    sky (23) or cars (26). Several maps with nothing over 18 are not label ids. Usually the first
    map decides. Files that cannot be read are left to the loader.
    """
    sample = labels[:: max(1, len(labels) // CHECKED_MAPS)][:CHECKED_MAPS]
    if len(sample) < CHECKED_MAPS:
        return
    for path in sample:
        try:
            ids = decode_label_map(path.read_bytes(), str(path))
        except (OSError, ExampleError):
            return
        if ((ids >= len(CLASSES)) & (ids < 34)).any():
            return
    raise ValueError(
        f"{sample[0]} and {len(sample) - 1} more label maps of {split!r} hold no id from "
        f"{len(CLASSES)} to 33, not even vegetation (21), sky (23) or cars (26). They look like "
        "train ids, but label ids (0 to 33) are required: replace "
        "them with the original gtFine_labelIds.png."
    )


def _official_readers(config):
    folders = [
        f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")
    ]
    root = require_folders(config.data_dir, "cityscapes", folders)
    readers = {}
    for split in ("train", "val"):
        pairs, left_out = [], Counter()
        for city in sorted((root / "leftImg8bit" / split).iterdir()):
            if is_hidden(city.name) or not city.is_dir():
                left_out["hidden" if is_hidden(city.name) else "outside the cities"] += 1
                continue
            images, others = find_images(city, recursive=False)
            left_out += others
            for image in images:
                stem = image.stem.removesuffix("_leftImg8bit")
                label = root / "gtFine" / split / city.name / f"{stem}_gtFine_labelIds.png"
                pairs.append((image, label))
        _check_split([label for _, label in pairs], split)
        readers[split] = pair_reader(pairs, f"cityscapes ({split})", config.on_error, left_out)
    return readers


def _tfds_readers(config):
    keys = ("image_left", "segmentation_label")
    readers = {}
    for split, tfds_split in (("train", "train"), ("val", "validation")):
        try:
            source, _ = tfds_records.open_split(config.data_dir, TFDS_NAME, tfds_split, keys)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} For the official download, set data_dir to the folder that holds "
                "leftImg8bit and gtFine."
            ) from None
        readers[split] = tfds_records.TfdsReader(
            source, f"cityscapes {split}", *keys, id="image_id"
        )
    return readers
