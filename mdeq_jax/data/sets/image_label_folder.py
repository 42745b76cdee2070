"""A segmentation data set of images and label maps in folders, with a table of its classes.

DIR/classes.csv       id,name,color,ignored
DIR/train/images/*    JPEG or PNG files
DIR/train/labels/*    8-bit grey PNG files of the same names, whose values are ids
DIR/val/images/*, DIR/val/labels/*
"""

import csv
import pathlib
import re

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import IGNORE_LABEL, Dataset, check_optional_fields
from mdeq_jax.data.vision import decoding
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

CLASSES_FILE = "classes.csv"
_COLUMNS = ("id", "name", "color", "ignored")
_FALSE, _TRUE = ("", "0", "false", "no"), ("1", "true", "yes")
_MAX_CLASSES = 254  # 254 and 255 mark invalid and ignored pixels


def load(config: ConfigDict) -> Dataset:
    """Returns the data set; an image and its label map have the same name up to the suffix.

    Args:
        config: `config.data`. `eval_split` is a folder of `data_dir`, "val" if None, or any other
            folder that holds images/ and labels/. `base_size` is by default the longer side of the
            first training image.

    Raises:
        FileNotFoundError: a folder or classes.csv is missing, or (unless `on_error="skip"`) a label
            map.
        ValueError: classes.csv is wrong, or two images have the same name.
    """
    check_optional_fields(config, (*SEGMENTATION_FIELDS, "eval_split"))
    eval_split = str(pathlib.Path(config.eval_split or "val").expanduser())
    splits = ("train", eval_split)
    folders = [f"{split}/{kind}" for split in splits for kind in ("images", "labels")]
    root = require_folders(config.data_dir, "image_label_folder", folders)
    labels = read_classes(config)
    table = label_table(train_ids(labels, IGNORE_LABEL))
    readers = {split: _reader(root / split, config.on_error) for split in ("train", eval_split)}
    base_size = config.base_size or _longer_side(readers["train"].images[0])

    def split(name, train):
        transform = SegmentationTransform.from_config(config, train, base_size, table)
        return DiskSplit(readers[name], transform, config.on_error)

    return Dataset(
        name="image_label_folder",
        task="segmentation",
        class_names=tuple(c.name for c in evaluated(labels)),
        image_size=training_image_size(config),
        train=split("train", train=True),
        eval=split(eval_split, train=False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def read_classes(config: ConfigDict) -> tuple[LabelClass, ...]:
    """Returns the classes of `config.data_dir`/classes.csv, in the order of the file.

    Its columns are `id` (0 to 255, the value in the label maps), `name`, `color` (`#rrggbb`) and
    `ignored` (`true` or `false`: neither trained nor evaluated).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a row is wrong; names the line.
    """
    path = pathlib.Path(config.data_dir).expanduser() / CLASSES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: write the table of classes, with the columns "
            f"{','.join(_COLUMNS)} (e.g. 0,road,#804080,false)."
        )
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets add a mark
    header = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in header else ",")
    rows.fieldnames = [
        name.strip().lower().replace("colour", "color") for name in rows.fieldnames or ()
    ]
    if missing := set(_COLUMNS) - set(rows.fieldnames):
        raise ValueError(
            f"{path}: the column {', '.join(sorted(missing))} is missing: its first line must be "
            f"{','.join(_COLUMNS)}."
        )
    classes = []
    for row in rows:
        classes.append(_read_class(row, f"{path}, line {rows.line_num}"))
        for field in ("id", "name"):
            values = [getattr(c, field) for c in classes]
            if values.count(values[-1]) > 1:
                raise ValueError(
                    f"{path}, line {rows.line_num}: the {field} {values[-1]!r} occurs twice."
                )
    if not 1 <= len(evaluated(tuple(classes))) <= _MAX_CLASSES:
        raise ValueError(f"{path}: from 1 to {_MAX_CLASSES} classes must not be ignored.")
    return tuple(classes)


def _read_class(row: dict[str, str | None], where: str) -> LabelClass:
    number, name, color, ignored = ((row[column] or "").strip() for column in _COLUMNS)
    if not re.fullmatch(r"\d{1,3}", number) or int(number) > 255:
        raise ValueError(f"{where}: the id {number!r} must be a whole number from 0 to 255.")
    if not name:
        raise ValueError(f"{where}: the class {number} has no name.")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise ValueError(f"{where}: the color {color!r} must be #rrggbb, e.g. #804080.")
    if ignored.lower() not in (*_FALSE, *_TRUE):
        raise ValueError(f"{where}: ignored is {ignored!r}, but must be true or false.")
    red, green, blue = bytes.fromhex(color[1:])
    return LabelClass(int(number), name, (red, green, blue), "all", ignored.lower() in _TRUE)


def _reader(folder: pathlib.Path, on_error: str):
    labels = folder / "labels"
    images, left_out = find_images(folder / "images", recursive=False)
    stems = {}
    for path in images:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would have the same label map: rename or remove one of them."
            )
    pairs = [(path, labels / f"{path.stem}.png") for path in images]
    left_out += count_unused(labels, pairs)
    return pair_reader(pairs, f"image_label_folder ({folder.name})", on_error, left_out)


def _longer_side(path: str) -> int:
    header = decoding.read_header(pathlib.Path(path).read_bytes(), path)
    return max(header.height, header.width)
