"""What a task shows as wrong: confusions and the worst examples, of a model that is a function."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.data import IGNORE_LABEL, Dataset, LabelClass, Vocabulary, read_class_table
from mdeq_jax.data.dataset import Skipped
from mdeq_jax.data.text.stream import TokenSplit
from mdeq_jax.models import ModelOutput
from mdeq_jax.tasks import TrainedModel, build_task
from mdeq_jax.tasks.segmentation.task import Segmentation
from mdeq_jax.tasks.task import Task


class Images:
    """Images whose first pixel is the number that the network predicts from."""

    in_memory = True

    def __init__(self, values, labels, unreadable=()):
        self._values, self._labels, self._unreadable = values, labels, unreadable

    def __len__(self):
        return len(self._values)

    def make_batch(self, indices, key):
        image = np.broadcast_to(self._values[indices], (3, 2, 2, len(indices))).T
        skipped = [Skipped(p, "damaged") for p, i in enumerate(indices) if i in self._unreadable]
        return {"image": image.astype(np.float32), "label": self._labels[indices]}, skipped


def images_of(values, labels, names, **options):
    split = Images(np.asarray(values, np.float32), np.asarray(labels, np.int32), **options)
    statistics = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return Dataset("numbers", "classification", split, split, class_names=names, **statistics)


def trained(config, apply, **methods):
    model = SimpleNamespace(apply=apply, **methods)
    return TrainedModel(config, model, {}, step=5)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def config():
    config = default.get_config()
    config.train.batch_size = 4
    return config


def classify(variables, images, forward):
    """Class 1 with probability x, class 0 otherwise."""
    x = images[:, 0, 0, 0]
    return ModelOutput(jnp.log(jnp.stack([1 - x, x], axis=1)))


def test_classification(config):
    values, labels = [0.9, 0.2, 0.6, 0.1, 0.8, 0.3], [1, 0, 0, 1, 1, 0]
    dataset = images_of(values, labels, ("no", "yes"), unreadable=(4,))
    review = build_task(config).review(trained(config, classify), dataset, 100)
    np.testing.assert_array_equal(review.confusion, [[2, 1], [1, 1]])
    first, second = review.examples[:2]
    assert first.name == "image 3" and first.loss == pytest.approx(-math.log(0.1))
    assert dict(first.facts) == {"label": "yes", "predicted": "no (90\N{NO-BREAK SPACE}%)"}
    assert second.name == "image 2" and second.loss == pytest.approx(-math.log(0.4))
    assert first.pictures[0][1].shape == (2, 2, 3) and first.pictures[0][1][0, 0, 0] == round(25.5)
    assert len(review.examples) == 5 and "5 of 6" in review.summary


def test_a_class_with_the_number_that_marks_pixels_is_counted(config):
    number = IGNORE_LABEL + 1
    dataset = images_of([0.1, 0.2], [IGNORE_LABEL, 1], tuple(map(str, range(number))))

    def always_the_last(variables, images, forward):
        return ModelOutput(jnp.zeros((len(images), number)).at[:, -1].set(1.0))

    review = build_task(config).review(trained(config, always_the_last), dataset, 2)
    assert review.confusion[IGNORE_LABEL, IGNORE_LABEL] == review.confusion[1, IGNORE_LABEL] == 1


def test_a_part_of_the_split_is_spread_over_it(config):
    dataset = images_of(np.linspace(0.1, 0.9, 9), np.arange(9) % 2, ("no", "yes"))
    review = build_task(config).review(trained(config, classify), dataset, 3)
    assert {example.name for example in review.examples} == {"image 0", "image 4", "image 8"}


def test_segmentation(config, monkeypatch):
    config = default.get_config("mdeq_segmenter")
    config.data.name, config.train.batch_size = "camvid", 1
    names = tuple(c.name for c in read_class_table(config.data) if not c.ignored)
    config.model.num_classes = len(names)
    labels = np.full((2, 2, 2), 3)
    labels[1, 0, 0] = IGNORE_LABEL
    dataset = images_of([0.0, 1.0], labels, names)

    def infer(self, model, variables, inputs, step_budget=None):
        """Class 3 of black images, class 4 of white ones."""
        right = jax.nn.one_hot(3 + inputs[..., 0].astype(int), len(names))
        return ModelOutput(2 * right)

    monkeypatch.setattr(Segmentation, "infer", infer)
    review = build_task(config).review(trained(config, None), dataset, 2)
    assert review.confusion[3, 3] == 4 and review.confusion[3, 4] == 3
    assert review.confusion.sum() == 7 and review.counted == "pixels"
    worst = review.examples[0]
    assert worst.facts == (("pixels right", "0.0 %"),) and worst.name == "1"
    others = len(names) - 1
    assert worst.loss == pytest.approx(math.log(math.exp(2) + others), rel=1e-5)
    assert [caption for caption, _ in worst.pictures] == ["image", "label", "prediction"]
    assert isinstance(read_class_table(config.data)[0], LabelClass)


def test_language(config):
    config = default.get_config("deq_transformer")
    config.train.batch_size, config.data.unit = 2, "character"
    vocabulary = Vocabulary(("a", "b", "\N{REPLACEMENT CHARACTER}"), "character")
    tokens = np.array([0, 0, 0, 0, 1, 0, 1, 0, 0], np.int32)  # two columns of two segments
    split = TokenSplit(tokens, 3, 2, True, "letters")
    dataset = Dataset("letters", "language_model", split, split, vocabulary=vocabulary)

    class LogProbs:
        def nll(self, targets):
            return jnp.where(targets == 1, 2.0, 0.5)

    def apply(variables, segment, forward):
        output = SimpleNamespace(logits=LogProbs(), memory=segment.memory + 1, solution=None)
        return output

    methods = {"empty_memory": lambda rows: jnp.zeros((rows, 1))}
    review = build_task(config).review(trained(config, apply, **methods), dataset, 100)
    assert review.confusion is None and "Of 4 segments" in review.summary
    worst = review.examples[0]
    assert worst.loss == 1.25 and worst.tokens == (("a", 0.5), ("b", 2.0))
    assert [example.loss for example in review.examples] == [1.25, 1.25, 0.5, 0.5]
    limited = build_task(config).review(trained(config, apply, **methods), dataset, 2)
    assert "Of 2 segments" in limited.summary


def test_another_task_says_so(config):
    class Other(Task):
        name = "other"
        example_inputs = inputs = loss = metric_sums = finalize = None

    review = Other(config).review(trained(config, None), None, 1)
    assert review.examples == () and "other does not show" in review.summary
