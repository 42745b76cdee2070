"""The confusion matrix of a segmentation, and the metrics computed from it."""

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(
    predictions: jax.Array, labels: jax.Array, counted: jax.Array, num_classes: int
) -> jax.Array:
    """How many pixels of each class were predicted as each class.

    Args:
        predictions: `[...]` int, in [0, C).
        labels: `[...]` int, in [0, C) where counted.
        counted: `[...]` bool, false for pixels that are left out.
        num_classes: C.

    Returns:
        `[C, C]` int32, truth by prediction: exact up to 2^31 pixels per call, so sums of many are
        for the host to make, in 64 bits.
    """
    cell = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cell.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def scores(confusion: np.ndarray, class_names: tuple[str, ...]) -> dict[str, float]:
    """Intersection over union and accuracies, as the Cityscapes benchmark defines them.

    Args:
        confusion: `[C, C]` pixels, truth by prediction.
        class_names: C names.

    Returns:
        "miou", mean over the classes that occur (in the truth or in a prediction) of their IoU,
        TP / (TP + FP + FN); "pixel_accuracy", share of the pixels that are right;
        "class_accuracy", mean over the classes of the truth of the share that is right;
        "iou/NAME" of each class, NaN for one that does not occur. NaN without any pixel.
    """
    confusion = np.asarray(confusion, np.float64)  # integers below 2^53: exact
    right, truth = np.diag(confusion), confusion.sum(axis=1)
    union = truth + confusion.sum(axis=0) - right
    iou, recall = _ratio(right, union), _ratio(right, truth)
    return {
        "miou": _mean(iou),
        "pixel_accuracy": float(_ratio(right.sum(), truth.sum())),
        "class_accuracy": _mean(recall),
        **{f"iou/{name}": float(value) for name, value in zip(class_names, iou, strict=True)},
    }


def _ratio(part, whole):
    whole = np.asarray(whole)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
