"""Classification of images: cross-entropy over classes, accuracy."""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdeq_jax.data import Dataset, load_dataset
from mdeq_jax.data.vision.preprocessing import FILE as PREPROCESSING_FILE
from mdeq_jax.data.vision.preprocessing import Preprocessing, load_preprocessing
from mdeq_jax.models import ModelOutput
from mdeq_jax.tasks.classification.losses import correct_top_k, cross_entropy
from mdeq_jax.tasks.classification.mixing import mix
from mdeq_jax.tasks.classification.predict import predict_classes
from mdeq_jax.tasks.image_review import Judged, review_images, shown_image
from mdeq_jax.tasks.image_task import ImageTask
from mdeq_jax.tasks.metric import percent
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.viz.review import Example, Review


class Classification(ImageTask):
    """Cross-entropy over classes; accuracy, and top-5 accuracy if there are more than 5 classes."""

    name = "classification"
    model_files = (PREPROCESSING_FILE,)
    metrics = (percent("accuracy"),)
    own_fields = {  # noqa: RUF012
        "train.label_smoothing": 0.0,
        "train.mixup": 0.0,
        "train.cutmix": 0.0,
    }

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self._smoothing = config.train.label_smoothing
        if not 0 <= self._smoothing < 1:
            raise ValueError(f"train.label_smoothing must be in [0, 1); got {self._smoothing}.")
        self._mixing = {"mixup": config.train.mixup, "cutmix": config.train.cutmix}
        for name, alpha in self._mixing.items():
            if alpha < 0:
                raise ValueError(f"train.{name} must not be negative; got {alpha}.")

    @property
    def augments(self) -> bool:
        """Whether `train.mixup` or `train.cutmix` is on."""
        return any(self._mixing.values())

    @property
    def single_pass(self) -> bool:
        """Yes."""
        return True

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """Mixes the images with `train.mixup` and `train.cutmix`; adds their other labels."""
        images, share = mix(batch["image"], key, **self._mixing)
        return {**batch, "image": images, "share": share, "other_label": batch["label"][::-1]}

    def loss(self, outputs: ModelOutput, batch: dict) -> jax.Array:
        """Mean cross-entropy, with `train.label_smoothing`, of both labels of a mixed image."""
        loss = cross_entropy(outputs.logits, batch["label"], smoothing=self._smoothing)
        if "share" in batch:
            other = cross_entropy(outputs.logits, batch["other_label"], smoothing=self._smoothing)
            loss = batch["share"] * loss + (1 - batch["share"]) * other
        return jnp.mean(loss)

    def metric_sums(self, outputs: ModelOutput, batch: dict) -> dict[str, jax.Array]:
        """Sums of the cross-entropies and of the correct examples."""
        logits, label, mask = outputs.logits, batch["label"], batch["mask"]
        sums = {
            "loss": jnp.sum(mask * cross_entropy(logits, label)),
            "accuracy": jnp.sum(mask * correct_top_k(logits, label, 1)),
        }
        if logits.shape[-1] > 5:
            sums["top5_accuracy"] = jnp.sum(mask * correct_top_k(logits, label, 5))
        return sums

    def finalize(self, sums: dict) -> dict[str, float]:
        """Means over the examples."""
        count = sums["count"]
        return {name: float(total / count) for name, total in sums.items() if name != "count"}

    def review(self, trained: TrainedModel, dataset: Dataset, max_examples: int) -> Review:
        """The confusion matrix, and the images with the largest cross-entropy."""

        def judge(outputs, batch):
            return cross_entropy(outputs.logits, batch["label"]), outputs.logits

        def show(name: str, judged: Judged) -> Example:
            names, image = dataset.class_names, shown_image(judged.image, dataset)
            predicted = (
                f"{names[judged.prediction]} ({100 * judged.confidence:.0f}\N{NO-BREAK SPACE}%)"
            )
            facts = (("label", names[judged.label]), ("predicted", predicted))
            return Example(f"image {name}", judged.loss, facts, (("", image),))

        return review_images(self, trained, dataset, max_examples, judge, show, "images")

    def predict(self, trained: TrainedModel, source: str | Path, workdir: Path) -> str:
        """Writes the class of each image in a folder to `workdir/predictions.csv`."""
        output = workdir / "predictions.csv"
        preprocessing = _preprocessing(self, trained.config, workdir)
        count = predict_classes(self, trained, preprocessing, source, output)
        return f"Wrote {output}: {count:,} images."


def _preprocessing(task: ImageTask, config: ConfigDict, workdir: Path) -> Preprocessing:
    """Of the data set that the network was trained on, or what its run has kept of it.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the data set does not fit the network.
    """
    try:
        dataset = load_dataset(config.data)
    except (FileNotFoundError, ImportError):
        kept = load_preprocessing(workdir)
        if kept is None or len(kept.class_names) != config.model.num_classes:
            raise
        return kept
    task.check_data(dataset)
    dataset.check_workdir(workdir)
    if dataset.preprocessing is None:
        raise ValueError(f"{dataset.name} does not say how its images are normalised.")
    return dataset.preprocessing
