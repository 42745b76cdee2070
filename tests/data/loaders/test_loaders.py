"""Loaders: order, sharding over processes, exact resume, evaluation, prefetching."""

import json
import time

import chex
import numpy as np
import pytest

from configs import default
from mdeq_jax.data import (
    EvalLoader,
    Prefetcher,
    TrainLoader,
    load_dataset,
    shard_batch,
)


@pytest.fixture(scope="module")
def digits():
    config = default.get_config().data
    config.augment = True
    return load_dataset(config)


def assert_equal(a, b):
    chex.assert_trees_all_equal(a, b, strict=True)


def test_batches(digits):
    loader = TrainLoader(digits, batch_size=64)
    batch = next(loader)
    assert batch["image"].shape == (64, 8, 8, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
    assert loader.steps_per_epoch == 1437 // 64


def test_seed_and_epoch_change_order_and_transforms(digits):
    first, other = TrainLoader(digits, 64, seed=0), TrainLoader(digits, 64, seed=1)
    assert not np.array_equal(next(first)["label"], next(other)["label"])
    epoch_0 = next(TrainLoader(digits, 1437))
    loader = TrainLoader(digits, 1437)
    next(loader)
    epoch_1 = next(loader)
    assert sorted(epoch_0["label"]) == sorted(epoch_1["label"])
    assert not np.array_equal(epoch_0["label"], epoch_1["label"])


def test_an_epoch_holds_no_example_twice(digits):
    plain = load_dataset(default.get_config().data)
    loader = TrainLoader(plain, 100)
    seen = np.concatenate([next(loader)["image"] for _ in range(loader.steps_per_epoch)])
    assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) == len(seen) == 1400


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_each_global_batch(digits, process_count):
    whole = TrainLoader(digits, 64, seed=3)
    parts = [TrainLoader(digits, 64, 3, p, process_count) for p in range(process_count)]
    for _ in range(whole.steps_per_epoch + 2):
        batches = [next(part) for part in parts]
        joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        assert_equal(joined, next(whole))
    assert parts[0].get_state() == parts[1].get_state() == whole.get_state()


@pytest.mark.parametrize("stop", [0, 5, 22, 31])
def test_resume_is_exact(digits, stop):
    loader = TrainLoader(digits, 64, seed=7)
    for _ in range(stop):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(3)]
    resumed = TrainLoader(digits, 64, seed=7)
    resumed.set_state(state)
    for batch in expected:
        assert_equal(next(resumed), batch)


def test_state_of_another_run_is_refused(digits):
    state = TrainLoader(digits, 64).get_state()
    with pytest.raises(ValueError, match=r"batch_size = 64, this run has 32"):
        TrainLoader(digits, 32).set_state(state)


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("batch_size", [60, 100, 500])
def test_eval_counts_every_example_once(digits, batch_size, process_count):
    loaders = [EvalLoader(digits, batch_size, p, process_count) for p in range(process_count)]
    lists = [list(loader) for loader in loaders]
    assert {len(batches) for batches in lists} == {-(-360 // batch_size)} == {len(loaders[0])}
    assert all(b["image"].shape[0] == batch_size // process_count for bs in lists for b in bs)
    real = [b["label"][b["mask"] == 1] for step in zip(*lists, strict=True) for b in step]
    np.testing.assert_array_equal(np.concatenate(real), digits.eval.labels)
    assert_equal(next(iter(loaders[0])), lists[0][0])  # a second pass starts anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=63, process_count=2), "multiple of process_count = 2"),
        (dict(batch_size=0), "positive"),
        (dict(batch_size=64, process_index=2, process_count=2), "process_index is 2"),
        (dict(batch_size=5000), "only 1437 training examples"),
    ],
)
def test_bad_arguments(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainLoader(digits, **arguments)


def test_shard_batch():
    batch = {"image": np.arange(24).reshape(6, 2, 2), "label": np.arange(6)}
    sharded = shard_batch(batch, 3)
    assert sharded["image"].shape == (3, 2, 2, 2)
    np.testing.assert_array_equal(sharded["label"], [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="6 examples cannot be split over 4 devices"):
        shard_batch(batch, 4)


def test_prefetcher_gives_the_batches_and_their_states(digits):
    expected, loader = TrainLoader(digits, 64), TrainLoader(digits, 64)
    with Prefetcher(loader, lambda batch: shard_batch(batch, 2)) as prefetcher:
        for _ in range(30):
            batch, state = next(prefetcher)
            assert_equal(batch, shard_batch(next(expected), 2))
            assert state == expected.get_state()
    assert prefetcher.waited_s > 0
    assert not prefetcher._thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(prefetcher)


def test_prefetcher_ends_with_a_finite_loader(digits):
    with Prefetcher(EvalLoader(digits, 100), lambda batch: batch["mask"].sum()) as prefetcher:
        assert [(int(n), state) for n, state in prefetcher] == [(100, None)] * 3 + [(60, None)]
        with pytest.raises(StopIteration):
            next(prefetcher)


def test_prefetcher_raises_what_the_thread_raised():
    def loader():
        yield 1
        raise OSError("disk on fire")

    with Prefetcher(loader(), lambda batch: batch) as prefetcher:
        assert next(prefetcher) == (1, None)
        with pytest.raises(OSError, match="disk on fire"):
            next(prefetcher)


def test_prefetcher_closes_while_full(digits):
    prefetcher = Prefetcher(TrainLoader(digits, 64), lambda batch: batch, size=1)
    time.sleep(0.1)
    start = time.perf_counter()
    prefetcher.close()
    assert time.perf_counter() - start < 2
    assert not prefetcher._thread.is_alive()
