"""ImageNet (ILSVRC 2012), prepared by TFDS: 1,281,167 + 50,000 images in 1,000 classes.

O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 1409.0575.
"""

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.vision import rand_augment, tfds_records
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.transforms import ClassificationTransform, training_image_size

NUM_CLASSES = 1000


def load(config: ConfigDict) -> Dataset:
    """Returns ImageNet, whose images are read from disk on demand. Class names are WordNet ids.

    Args:
        config: `config.data`. `augment` gives random resized crops and mirror images. Without it,
            training images are transformed like evaluation images. `eval_split` is "validation"
            (also if None) or "train".
    """
    check_optional_fields(config, ("crop_fraction", "eval_split", *rand_augment.FIELDS))
    eval_split = choose_eval_split(config, ("validation", "train"))
    size = training_image_size(config)

    def split(name, train):
        source, info = tfds_records.open_split(config.data_dir, "imagenet2012", name, ("image",))
        reader = tfds_records.TfdsReader(source, f"imagenet2012 {name}", id="file_name")
        # ImageNet has some grey images. The original code converts them, and so must a comparison.
        transform = ClassificationTransform.from_config(
            config, NUM_CLASSES, train=train, convert_to_rgb=True
        )
        return DiskSplit(reader, transform, config.on_error), info

    train, info = split("train", train=True)
    evaluated, _ = split(eval_split, train=False)
    return Dataset(
        name="imagenet2012",
        task="classification",
        class_names=tuple(info.features["label"].names),
        image_size=size,
        train=train,
        eval=evaluated,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_fraction=evaluated.transform.crop_fraction,
    )
