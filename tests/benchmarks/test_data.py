"""The benchmark's parts: shares add up, the waiting is measured, Pillow gives the same pictures."""

import time

import numpy as np
import pytest

from benchmarks import data as benchmark
from mdeq_jax.data import TrainLoader, load_dataset
from mdeq_jax.data.vision import augment


@pytest.fixture
def dataset(data_config, image_folder):
    config = data_config(
        name="image_folder", data_dir=str(image_folder), image_size=(16, 16), augment=True
    )
    return load_dataset(config)


def test_stages(dataset):
    normalize = augment.normalize
    stages = benchmark.measure_stages(dataset, num_examples=18, batch_size=6)
    assert augment.normalize is normalize  # all is as it was
    assert stages["examples"] == 18 and stages["examples_per_second_per_core"] > 0
    assert {"read", "decode", "resize", "normalise"} <= stages["shares"].keys()
    np.testing.assert_allclose(sum(stages["shares"].values()), 1)


def test_waiting(dataset):
    class Slow(TrainLoader):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    slow = benchmark.measure_loader(Slow(dataset, 6), 5, 6, step_s=0.0)
    assert slow["waited_share"] > 0.5
    fast = benchmark.measure_loader(TrainLoader(dataset, 6), 5, 6, step_s=0.1)
    assert fast["waited_share"] < 0.5 and fast["examples_per_second"] < 61


def test_pillow_comparison(dataset):
    pytest.importorskip("PIL")
    assert benchmark.compare_with_pillow(dataset.eval, 5)["ratio"] > 0
    transform = dataset.eval.transform
    record = dataset.eval.reader[0]
    ours = augment.normalize(
        transform(record, None)[0], benchmark.IMAGENET_MEAN, benchmark.IMAGENET_STD
    )
    theirs = benchmark.pillow_transform(record, None, transform.size, train=False)
    assert np.abs(ours - theirs).mean() < 0.15
