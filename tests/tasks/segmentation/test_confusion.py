"""The confusion matrix and its metrics, compared with scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mdeq_jax.tasks.segmentation.confusion import confusion_matrix, scores

CLASSES = 6
NAMES = tuple("abcdef")
count = jax.jit(confusion_matrix, static_argnums=3)


def random_maps(seed, classes=range(CLASSES)):
    """Predictions that are right more often than not, and truths with ignored pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(list(classes), (3, 20, 30))
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice(list(classes)))
    return prediction, np.where(rng.random(truth.shape) < 0.2, 255, truth)


@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn(seed):
    prediction, truth = random_maps(seed)
    counted = truth != 255
    matrix = np.asarray(count(prediction, truth, counted, CLASSES))
    assert matrix.dtype == np.int32
    expected = sklearn_metrics.confusion_matrix(
        truth[counted], prediction[counted], labels=range(CLASSES)
    )
    np.testing.assert_array_equal(matrix, expected)

    metrics = scores(matrix, NAMES)
    truth, prediction = truth[counted], prediction[counted]
    iou = sklearn_metrics.jaccard_score(truth, prediction, average=None)
    np.testing.assert_allclose([metrics[f"iou/{n}"] for n in NAMES], iou, rtol=1e-12)
    np.testing.assert_allclose(metrics["miou"], iou.mean(), rtol=1e-12)
    for name, function in (
        ("pixel_accuracy", sklearn_metrics.accuracy_score),
        ("class_accuracy", sklearn_metrics.balanced_accuracy_score),
    ):
        np.testing.assert_allclose(metrics[name], function(truth, prediction), rtol=1e-12)


def test_sums_of_parts_are_the_whole():
    prediction, truth = random_maps(0)
    counted = truth != 255
    parts = [
        count(prediction[i : i + 1], truth[i : i + 1], counted[i : i + 1], 6) for i in (0, 1, 2)
    ]
    np.testing.assert_array_equal(sum(parts), count(prediction, truth, counted, CLASSES))


def test_classes_that_do_not_occur():
    """In neither map: no IoU, and no part in the mean. Predicted only: an IoU of 0."""
    matrix = np.zeros((4, 4), np.int64)
    matrix[0, 0], matrix[1, 1], matrix[1, 2] = 10, 6, 4
    metrics = scores(matrix, tuple("abcd"))
    assert [metrics[f"iou/{n}"] for n in "abc"] == [1.0, 0.6, 0.0]
    assert np.isnan(metrics["iou/d"])
    np.testing.assert_allclose(metrics["miou"], 1.6 / 3)
    np.testing.assert_allclose(metrics["class_accuracy"], 1.6 / 2)
    assert metrics["pixel_accuracy"] == 0.8


def test_nothing_counted():
    metrics = scores(np.zeros((2, 2), np.int64), ("a", "b"))
    assert all(np.isnan(value) for value in metrics.values())


def test_more_pixels_than_float32_can_count():
    """500 whole images of Cityscapes in one class, and one pixel more."""
    pixels = 500 * 1024 * 2048
    metrics = scores(np.array([[pixels, 1], [0, 0]]), ("a", "b"))
    assert metrics["pixel_accuracy"] == pixels / (pixels + 1) < 1
