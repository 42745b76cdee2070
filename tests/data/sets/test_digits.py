"""The digits: split, scaling, augmentation, errors."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from configs import default
from mdeq_jax.data import TrainLoader, load_dataset
from mdeq_jax.data.sets import digits
from mdeq_jax.data.sets.stratified_split import stratified_split


def config(**fields):
    data = default.get_config().data
    data.update(fields)
    return data


def test_split():
    dataset = load_dataset(config())
    assert (dataset.name, dataset.task) == ("digits", "classification")
    assert (dataset.num_classes, dataset.num_train, dataset.num_eval) == (10, 1437, 360)
    assert np.bincount(dataset.eval.labels).min() >= 34  # the classes in proportion


def test_data_and_split_are_those_of_scikit_learn():
    pixels, labels = load_digits(return_X_y=True)
    train, evaluation = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    dataset = load_dataset(config())
    for split, indices in ((dataset.train, train), (dataset.eval, evaluation)):
        np.testing.assert_array_equal(split.images[..., 0].reshape(-1, 64), pixels[indices])
        np.testing.assert_array_equal(split.labels, labels[indices])


@pytest.mark.parametrize("seed", range(3))
def test_split_of_unequal_classes_is_that_of_scikit_learn(seed):
    labels = np.random.default_rng(seed).permutation(np.repeat([3, 5, 6, 9], [2, 7, 7, 30]))
    expected = train_test_split(
        np.arange(len(labels)), test_size=13, stratify=labels, random_state=seed
    )
    for indices, wanted in zip(stratified_split(labels, 13, seed), expected):
        np.testing.assert_array_equal(indices, wanted)


def test_evaluation_on_the_training_split():
    dataset = load_dataset(config(eval_split="train", augment=True))
    assert dataset.num_eval == 1437 and dataset.eval.pad == 0
    with pytest.raises(ValueError, match="is 'val', but must be 'test' or 'train', the splits of"):
        load_dataset(config(eval_split="val"))


def test_pixels_are_normalised_by_the_training_split():
    dataset = load_dataset(config())
    pixels = dataset.train.images / digits.MAX_VALUE
    assert pixels.min() == 0 and pixels.max() == 1
    np.testing.assert_allclose(pixels.mean(), digits.MEAN[0], atol=5e-5)
    np.testing.assert_allclose(pixels.std(), digits.STD[0], atol=5e-5)
    batch = next(TrainLoader(dataset, 1437))["image"]
    np.testing.assert_allclose([batch.mean(), batch.std()], [0, 1], atol=1e-3)
    np.testing.assert_array_equal(batch[..., 0], batch[..., 2])


def test_augmentation_moves_by_up_to_one_pixel():
    plain = load_dataset(config()).train
    moved = load_dataset(config(augment=True)).train
    original = plain.make_batch(np.arange(200), (0, 0))[0]["image"]
    shifted = moved.make_batch(np.arange(200), (0, 0))[0]["image"]
    black = original.min()
    padded = np.pad(original, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=black)
    crops = np.stack([padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    found = (crops == shifted).all(axis=(2, 3, 4))
    assert found.any(axis=0).all()
    assert len(np.unique(found.argmax(axis=0))) == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(image_size=(32, 32)), r"image_size is \(32, 32\).*\(8, 8\)"),
        (dict(name="mnist"), "'mnist', but must be one of digits"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(config(**fields))
