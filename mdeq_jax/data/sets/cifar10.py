"""CIFAR-10, prepared by TFDS: 50,000 + 10,000 images of 32x32 pixels in 10 classes.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.vision import decoding, rand_augment, tfds_records
from mdeq_jax.data.vision.array_split import ArraySplit, check_image_size, check_labels

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
SIZE = (32, 32)


def load(config: ConfigDict) -> Dataset:
    """Returns CIFAR-10, decoded into memory (a few seconds, 184 MB).

    Args:
        config: `config.data`. `augment` pads a training image with 4 black pixels, cuts out 32x32
            at random and mirrors it with probability 1/2. The original trains all its models with
            it, except TINY. `eval_split` is "test" (also if None) or "train".
    """
    check_optional_fields(config, ("eval_split", *rand_augment.FIELDS))
    eval_split = choose_eval_split(config, ("test", "train"))
    size = check_image_size("cifar10", config.image_size, SIZE)
    train_images, train_labels, names = _decode(config, "train")
    eval_images, eval_labels, _ = (
        _decode(config, "test") if eval_split == "test" else (train_images, train_labels, names)
    )
    return Dataset(
        name="cifar10",
        task="classification",
        class_names=names,
        image_size=size,
        train=ArraySplit(
            train_images,
            train_labels,
            MEAN,
            STD,
            pad=4 if config.augment else 0,
            flip=config.augment,
            rand_augment=rand_augment.RandAugment.from_config(config),
        ),
        eval=ArraySplit(eval_images, eval_labels, MEAN, STD),
        mean=MEAN,
        std=STD,
    )


def _decode(config, split):
    source, info = tfds_records.open_split(config.data_dir, "cifar10", split, ("image",))
    reader = tfds_records.TfdsReader(source, f"cifar10 {split}", id="id")
    pixels = np.empty((len(reader), *SIZE, 3), np.uint8)
    labels = np.empty(len(reader), np.int64)
    kept = 0
    for record in reader:
        try:
            decoding.check_rgb(decoding.read_header(record.image, record.path), record.path)
            pixels[kept] = decoding.decode_rgb(record.image, record.path)
        except decoding.ExampleError as error:
            if config.on_error != "skip":
                raise
            logging.warning("cifar10 (%s): skipped an example: %s", split, error)
            continue
        labels[kept] = record.label
        kept += 1
    if kept < len(reader):
        logging.warning("cifar10 (%s): skipped %d examples.", split, len(reader) - kept)
    labels = check_labels(labels[:kept], 10, f"cifar10 {split}")
    return pixels[:kept], labels, tuple(info.features["label"].names)
