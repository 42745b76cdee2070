"""ImageNet (ILSVRC 2012), prepared by TFDS: 1,281,167 + 50,000 images in 1,000 classes.

O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 1409.0575.
"""

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.vision import tfds_records
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, DiskSplit
from mdeq_jax.data.vision.transforms import ClassificationTransform

NUM_CLASSES = 1000


def load(config) -> Dataset:
    """Returns ImageNet, read from disk as it is needed; class names are WordNet ids.

    Args:
      config: `config.data`. `augment`: random resized crops and mirror images; without it training
        images are treated as those of evaluation.
    """
    size = tuple(config.image_size)

    def split(name, train):
        source, info = tfds_records.open_split(config.data_dir, "imagenet2012", name, ("image",))
        reader = tfds_records.TfdsReader(source, f"imagenet2012 {name}", id="file_name")
        # ImageNet has grey images; the originals convert them, and so must whoever compares.
        transform = ClassificationTransform(size, NUM_CLASSES, train, convert_to_rgb=True)
        return DiskSplit(reader, transform, config.on_error), info

    train, info = split("train", train=config.augment)
    return Dataset(
        name="imagenet2012",
        task="classification",
        class_names=tuple(info.features["label"].names),
        image_size=size,
        train=train,
        eval=split("validation", train=False)[0],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
