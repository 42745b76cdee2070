"""Streams of tokens in columns: order, memory's start, exact resume, evaluation, processes."""

import json

import chex
import numpy as np
import pytest

from mdeq_jax.data import Dataset, EvalLoader, TrainLoader
from mdeq_jax.data.text.stream import TokenSplit

LENGTH = 5


def dataset(num_train=47, num_eval=47, offset=0):
    """The tokens are their own positions."""

    def split(size, keeps_all):
        tokens = (np.arange(size) + offset).astype(np.int32)
        return TokenSplit(tokens, size + offset, LENGTH, keeps_all, "text (split)")

    return Dataset("text", "language_model", split(num_train, False), split(num_eval, True))


def test_training_columns_are_the_originals():
    """47 tokens in 4 columns of 11; the remainder and the targets across columns are left out."""
    loader = TrainLoader(dataset(), 4)
    assert loader.steps_per_epoch == 2
    first, second, again = (next(loader) for _ in range(3))
    assert first["tokens"].dtype == first["targets"].dtype == np.int32
    np.testing.assert_array_equal(first["tokens"][:, 0], [0, 11, 22, 33])
    np.testing.assert_array_equal(first["tokens"][1], [11, 12, 13, 14, 15])
    np.testing.assert_array_equal(second["tokens"][1], [16, 17, 18, 19, 20])
    for batch in (first, second):
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        assert batch["valid"].all() and batch["valid"].shape == (4, LENGTH)
        np.testing.assert_array_equal(batch["mask"], np.ones(4, np.float32))
    assert first["start"].tolist() == [True] * 4 and second["start"].tolist() == [False] * 4
    chex.assert_trees_all_equal(first, again, strict=True)  # a pass begins as the one before


def test_the_last_training_segment_is_ragged():
    loader = TrainLoader(dataset(num_train=36), 4)  # columns of 9: 8 predictions
    batches = [next(loader) for _ in range(loader.steps_per_epoch)]
    assert [batch["valid"].sum() for batch in batches] == [20, 12]
    np.testing.assert_array_equal(batches[1]["valid"][0], [True] * 3 + [False] * 2)


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("num_eval", [42, 43, 47, 61])
def test_evaluation_scores_every_token_once(num_eval, process_count):
    data = dataset(num_eval=num_eval)
    scored = []
    for process in range(process_count):
        for step, batch in enumerate(EvalLoader(data, 4, process, process_count)):
            assert batch["start"].all() == (step == 0)
            np.testing.assert_array_equal(batch["mask"], batch["valid"].any(axis=1))
            np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
            scored.append(batch["targets"][batch["valid"]])
    np.testing.assert_array_equal(np.sort(np.concatenate(scored)), np.arange(1, num_eval))


def test_evaluation_rows_continue():
    loader = EvalLoader(dataset(), 4)
    rows = np.concatenate([batch["tokens"] for batch in loader], axis=1)
    valid = np.concatenate([batch["valid"] for batch in loader], axis=1)
    for row, keep in zip(rows, valid):
        assert (np.diff(row[keep]) == 1).all()


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_each_batch(process_count):
    whole = TrainLoader(dataset(), 4)
    parts = [TrainLoader(dataset(), 4, 0, p, process_count) for p in range(process_count)]
    for _ in range(5):
        batches = [next(part) for part in parts]
        joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        chex.assert_trees_all_equal(joined, next(whole), strict=True)


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_resume_is_exact(stop):
    loader = TrainLoader(dataset(num_train=60), 4)
    for _ in range(stop):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    resumed = TrainLoader(dataset(num_train=60), 4)
    resumed.set_state(state)
    for _ in range(4):
        chex.assert_trees_all_equal(next(resumed), next(loader), strict=True)


def test_a_position_in_another_text_is_refused():
    state = TrainLoader(dataset(), 4).get_state()
    with pytest.raises(ValueError, match="The saved data state has tokens = "):
        TrainLoader(dataset(offset=1), 4).set_state(state)
    with pytest.raises(ValueError, match="segment_length = 3"):
        TrainLoader(dataset(), 4).set_state({**state, "segment_length": 3})


def test_bad_streams():
    with pytest.raises(ValueError, match=r"make 8 columns with 4 predictions .* segment has 5"):
        TrainLoader(dataset(), 8)
    with pytest.raises(ValueError, match=r"make 16 columns with 3 predictions"):
        EvalLoader(dataset(), 16)
    with pytest.raises(ValueError, match="make 100 columns with 0 predictions"):
        TrainLoader(dataset(), 100)
    with pytest.raises(ValueError, match=r"text: token 2 is 9, but tokens must lie in \[0, 9\)"):
        TokenSplit(np.array([0, 3, 9], np.int32), 9, LENGTH, True, "text")
    with pytest.raises(ValueError, match="segment_length is 0"):
        TokenSplit(np.zeros(9, np.int32), 9, 0, True, "text")
