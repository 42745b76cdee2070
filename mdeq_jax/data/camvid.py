"""CamVid road scenes: 367 train, 101 val and 233 test images of 480x360 pixels, 11 classes.

G. Brostow et al., Semantic Object Classes in Video, 2009; the split of SegNet (1511.00561).
"""

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset
from mdeq_jax.data.disk import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.files import list_images, pair_reader, require_folders
from mdeq_jax.data.transforms import SegmentationTransform, label_table

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = 11  # in the files; `IGNORE_LABEL` in a batch
BASE_SIZE = 480


def load(config) -> Dataset:
    """Returns CamVid from SPLIT/NAME.jpg (or .png) and SPLITannot/NAME.png.

    Label 11 of the files, "void", becomes `IGNORE_LABEL`.

    Args:
      config: `config.data`. `eval_split` is "val" (if None) or "test", which papers report;
        `eval_image_size` (384, 480) makes whole images divisible by 32.

    Raises:
      FileNotFoundError: a folder is missing, or (unless `on_error="skip"`) an image's label map.
      ValueError: an unknown `eval_split`.
    """
    eval_split = config.eval_split or "val"
    if eval_split not in ("val", "test"):
        raise ValueError(f"config.data.eval_split is {eval_split!r}, but must be 'val' or 'test'.")
    folders = ("train", "trainannot", eval_split, f"{eval_split}annot")
    root = require_folders(config.data_dir, "camvid", folders)
    table = label_table({**{i: i for i in range(len(CLASS_NAMES))}, VOID: IGNORE_LABEL})

    def split(folder, train):
        pairs = [
            (path, root / f"{folder}annot" / f"{path.stem}.png")
            for path in list_images(root / folder)
        ]
        reader = pair_reader(pairs, f"camvid ({folder})", config.on_error)
        transform = SegmentationTransform.from_config(config, train, BASE_SIZE, table)
        return DiskSplit(reader, transform, config.on_error)

    return Dataset(
        name="camvid",
        task="segmentation",
        class_names=CLASS_NAMES,
        image_size=tuple(config.image_size),
        train=split("train", train=True),
        eval=split(eval_split, train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
