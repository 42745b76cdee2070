"""Cityscapes street scenes: 2,975 train and 500 val images of 2048x1024 pixels, 19 classes.

M. Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, 1604.01685.
"""

import pathlib
from typing import NamedTuple

from mdeq_jax.data import tfds_records
from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset
from mdeq_jax.data.disk import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.files import list_images, pair_reader, require_folders
from mdeq_jax.data.transforms import SegmentationTransform, label_table

BASE_SIZE = 2048
TFDS_NAME = "cityscapes/semantic_segmentation"


class CityscapesClass(NamedTuple):
    """A class that is trained: its label in the files, and its name. Its place is its train id."""

    label: int
    name: str


# The 19 of the 34 labels (cityscapesScripts, helpers/labels.py) that the benchmark evaluates.
CLASSES = (
    CityscapesClass(7, "road"),
    CityscapesClass(8, "sidewalk"),
    CityscapesClass(11, "building"),
    CityscapesClass(12, "wall"),
    CityscapesClass(13, "fence"),
    CityscapesClass(17, "pole"),
    CityscapesClass(19, "traffic light"),
    CityscapesClass(20, "traffic sign"),
    CityscapesClass(21, "vegetation"),
    CityscapesClass(22, "terrain"),
    CityscapesClass(23, "sky"),
    CityscapesClass(24, "person"),
    CityscapesClass(25, "rider"),
    CityscapesClass(26, "car"),
    CityscapesClass(27, "truck"),
    CityscapesClass(28, "bus"),
    CityscapesClass(31, "train"),
    CityscapesClass(32, "motorcycle"),
    CityscapesClass(33, "bicycle"),
)
# -1 is the licence plate, 255 in the 8 bits of a PNG.
TRAIN_IDS = {
    **{label: IGNORE_LABEL for label in range(-1, 34)},
    **{c.label: train_id for train_id, c in enumerate(CLASSES)},
}


def load(config) -> Dataset:
    """Returns Cityscapes, from the official folders or as TFDS has prepared it.

    Official: DIR/leftImg8bit/SPLIT/CITY/X_leftImg8bit.png with DIR/gtFine/SPLIT/CITY/
    X_gtFine_labelIds.png. TFDS: DIR/cityscapes/semantic_segmentation/VERSION. Label ids become the
    19 train ids; all others, `IGNORE_LABEL`.

    Args:
      config: `config.data`; DIR is `data_dir`.

    Raises:
      FileNotFoundError: neither is there, or (unless `on_error="skip"`) a label map is missing.
    """
    table = label_table(TRAIN_IDS)
    official = (pathlib.Path(config.data_dir) / "leftImg8bit").is_dir()
    readers = _official_readers(config) if official else _tfds_readers(config)

    def split(reader, train):
        transform = SegmentationTransform.from_config(config, train, BASE_SIZE, table)
        return DiskSplit(reader, transform, config.on_error)

    return Dataset(
        name="cityscapes",
        task="segmentation",
        class_names=tuple(c.name for c in CLASSES),
        image_size=tuple(config.image_size),
        train=split(readers["train"], train=True),
        eval=split(readers["val"], train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _official_readers(config):
    folders = [
        f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")
    ]
    root = require_folders(config.data_dir, "cityscapes", folders)
    readers = {}
    for split in ("train", "val"):
        pairs = []
        for city in sorted(p for p in (root / "leftImg8bit" / split).iterdir() if p.is_dir()):
            for image in list_images(city):
                stem = image.stem.removesuffix("_leftImg8bit")
                label = root / "gtFine" / split / city.name / f"{stem}_gtFine_labelIds.png"
                pairs.append((image, label))
        readers[split] = pair_reader(pairs, f"cityscapes ({split})", config.on_error)
    return readers


def _tfds_readers(config):
    keys = ("image_left", "segmentation_label")
    readers = {}
    for split, tfds_split in (("train", "train"), ("val", "validation")):
        source, _ = tfds_records.open_split(config.data_dir, TFDS_NAME, tfds_split, keys)
        readers[split] = tfds_records.TfdsReader(
            source, f"cityscapes {split}", *keys, id="image_id"
        )
    return readers
