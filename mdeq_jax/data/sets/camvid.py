"""CamVid road scenes: 367 train, 101 val and 233 test images of 480x360 pixels, 11 classes.

G. Brostow et al., Semantic Object Classes in Video, 2009; the split of SegNet (1511.00561).
"""

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.files import count_unused, pair_reader, require_folders
from mdeq_jax.data.vision.folders import find_images
from mdeq_jax.data.vision.label_classes import LabelClass, evaluated, train_ids
from mdeq_jax.data.vision.transforms import (
    SEGMENTATION_FIELDS,
    SegmentationTransform,
    label_table,
    training_image_size,
)

# Names and ids of the 12-label maps published with SegNet. Colours are CamVid's, of the labels that
# they merge. CamVid has no categories, so these are Cityscapes'.
LABELS = (
    LabelClass(0, "sky", (128, 128, 128), "sky"),
    LabelClass(1, "building", (128, 0, 0), "construction"),
    LabelClass(2, "pole", (192, 192, 128), "object"),
    LabelClass(3, "road", (128, 64, 128), "flat"),
    LabelClass(4, "pavement", (0, 0, 192), "flat"),
    LabelClass(5, "tree", (128, 128, 0), "nature"),
    LabelClass(6, "sign", (192, 128, 128), "object"),
    LabelClass(7, "fence", (64, 64, 128), "construction"),
    LabelClass(8, "car", (64, 0, 128), "vehicle"),
    LabelClass(9, "pedestrian", (64, 64, 0), "human"),
    LabelClass(10, "bicyclist", (0, 128, 192), "human"),
    LabelClass(11, "void", (0, 0, 0), "void", ignored=True),
)
CLASSES = evaluated(LABELS)
VOID = 11  # in the files; a batch has `IGNORE_LABEL` instead
BASE_SIZE = 480


def load(config: ConfigDict) -> Dataset:
    """Returns CamVid from SPLIT/NAME.jpg (or .png) and SPLITannot/NAME.png.

    Label 11 of the files, "void", becomes `IGNORE_LABEL`.

    Args:
        config: `config.data`. `eval_split` is "val" (also if None), "test", which papers
            report, or "train".
            `eval_image_size` (384, 480) pads whole images to multiples of 32.

    Raises:
        FileNotFoundError: a folder is missing, or (unless `on_error="skip"`) a label map.
        ValueError: an unknown `eval_split`.
    """
    check_optional_fields(config, (*SEGMENTATION_FIELDS, "eval_split"))
    eval_split = choose_eval_split(config, ("val", "test", "train"))
    folders = ("train", "trainannot", eval_split, f"{eval_split}annot")
    root = require_folders(config.data_dir, "camvid", folders)
    table = label_table(train_ids(LABELS, IGNORE_LABEL))

    def split(folder, train):
        labels = root / f"{folder}annot"
        images, left_out = find_images(root / folder, recursive=False)
        pairs = [(path, labels / f"{path.stem}.png") for path in images]
        left_out += count_unused(labels, pairs)
        reader = pair_reader(pairs, f"camvid ({folder})", config.on_error, left_out)
        transform = SegmentationTransform.from_config(config, train, BASE_SIZE, table)
        return DiskSplit(reader, transform, config.on_error)

    return Dataset(
        name="camvid",
        task="segmentation",
        class_names=tuple(c.name for c in CLASSES),
        image_size=training_image_size(config),
        train=split("train", train=True),
        eval=split(eval_split, train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
