"""Handwritten digits: 1,797 real images of 8x8 pixels, included in scikit-learn's wheel.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from einops import repeat
from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.sets.stratified_split import stratified_split
from mdeq_jax.data.vision import rand_augment
from mdeq_jax.data.vision.array_split import ArraySplit, check_image_size, check_labels

NUM_EVAL = 360
SIZE = (8, 8)
MAX_VALUE = 16
# Of the training split, scaled to [0, 1]. The three channels are copies of one.
MEAN = (0.3054, 0.3054, 0.3054)
STD = (0.3761, 0.3761, 0.3761)


def load(config: ConfigDict) -> Dataset:
    """Returns the digits, split 1,437 / 360 by a fixed seed, stratified by class.

    Args:
        config: `config.data`. `augment` moves each training image by up to one pixel in each
            direction. Digits are never mirrored. `eval_split` is "test" (also if None) or "train".
    """
    check_optional_fields(config, ("eval_split", *rand_augment.FIELDS))
    eval_split = choose_eval_split(config, ("test", "train"))
    size = check_image_size("digits", config.image_size, SIZE)
    pixels, classes = _read()
    labels = check_labels(np.asarray(classes), 10, "digits")
    images = repeat(
        np.asarray(pixels, np.uint8), "n (h w) -> n h w rgb", h=SIZE[0], w=SIZE[1], rgb=3
    )
    train, evaluation = stratified_split(labels, NUM_EVAL, seed=0)

    def split(indices, **transforms):
        return ArraySplit(images[indices], labels[indices], MEAN, STD, MAX_VALUE, **transforms)

    return Dataset(
        name="digits",
        task="classification",
        class_names=tuple("0123456789"),
        image_size=size,
        train=split(
            train,
            pad=1 if config.augment else 0,
            rand_augment=rand_augment.RandAugment.from_config(config),
        ),
        eval=split(evaluation if eval_split == "test" else train),
        mean=MEAN,
        std=STD,
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[N, 64]` and classes `[N]`: the rows of scikit-learn's file.

    Importing scikit-learn takes 0.7 s; other data sets do not need it.
    """
    spec = find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            with gzip.open(file, "rt") as lines:
                rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
            return rows[:, :-1], rows[:, -1].astype(int)
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return np.asarray(pixels, np.uint8), np.asarray(classes)
