"""Checkpoints where the disk does not play along."""

import contextlib
import os
import resource
import signal
import threading
import time

import chex
import jax
import numpy as np
import optax
import pytest

from configs import default
from mdeq_jax.engine.checkpoint import CheckpointError, Checkpoints
from mdeq_jax.engine.checkpoint_folder import BEST
from mdeq_jax.engine.state import OPTIMIZERS, build_optimizer, make_state
from mdeq_jax.engine.workdir import check_writable


def state_of(step, size=1000):
    rng = np.random.default_rng(step)
    variables = {
        "params": {"kernel": rng.normal(size=size).astype(np.float32)},
        "batch_stats": {"mean": rng.normal(size=3).astype(np.float32)},
    }
    state = make_state(variables, optax.sgd(0.1, momentum=0.9), averaged=True)
    return jax.device_get(state.replace(step=np.int32(step)))


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a disk that is full: the kernel refuses to make a file longer."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, ignored)


def test_there_and_back(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_of(step), {"step": step})
        checkpoints.wait()
        state, data = checkpoints.restore(state_of(0)), checkpoints.data_state()
    chex.assert_trees_all_equal(state, state_of(3))
    assert data == {"step": 3}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_there_and_back(tmp_path, name):
    train = default.get_config().train
    train.optimizer, train.schedule = name, "constant"
    optimizer = build_optimizer(train, 10)
    variables = {"params": {"kernel": np.eye(3, dtype=np.float32), "bias": np.ones(3, np.float32)}}
    state = make_state({**variables, "batch_stats": {}}, optimizer)
    _, moved = optimizer.update(state.params, state.opt_state, state.params)
    moved = jax.device_get(state.replace(step=np.int32(1), opt_state=moved))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(moved, {"step": 1})
        checkpoints.wait()
        restored = checkpoints.restore(jax.device_get(state))
    chex.assert_trees_all_equal(restored, moved)


def test_best_score(tmp_path):
    with Checkpoints(tmp_path, folder=BEST, keep=1) as best:
        assert best.best_score() is None
        best.save_scored(state_of(4), 0.5)
        best.wait()
        assert best.best_score() == 0.5
        variables, step = best.restore_variables(state_of(0).variables)
    assert step == 4
    chex.assert_trees_all_equal(variables, state_of(4).average)


@pytest.mark.parametrize("step", [4, 3])
def test_a_better_one_at_an_earlier_or_equal_step(tmp_path, step):
    """A run that resumes before its best step finds that one in the folder."""
    with Checkpoints(tmp_path, folder=BEST, keep=1) as best:
        best.save_scored(state_of(4), 0.5)
    with Checkpoints(tmp_path, folder=BEST, keep=1) as best:
        best.save_scored(state_of(step, size=10), 0.9)
    with Checkpoints(tmp_path, folder=BEST, write=False) as best:
        assert best.best_score() == 0.9
        variables, saved = best.restore_variables(state_of(0, size=10).variables)
    assert saved == step
    chex.assert_trees_all_equal(variables, state_of(step, size=10).average)
    assert [path.name for path in best.path.iterdir()] == [str(step)]


def test_a_save_that_is_refused_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(4), {})
        with pytest.raises(CheckpointError, match="step 3 is not after 4"):
            checkpoints.save(state_of(3), {})


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    """Also if a write that is still under way fills the folder again."""
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"

    def keep_writing():
        for i in range(100):
            with contextlib.suppress(OSError):  # removed in the middle of it
                (left / "optimizer").mkdir(parents=True, exist_ok=True)
                (left / "optimizer" / str(i)).write_text("late")
            time.sleep(0.002)

    (left / "variables").mkdir(parents=True)
    writer = threading.Thread(target=keep_writing)
    writer.start()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        writer.join()
    with Checkpoints(tmp_path) as checkpoints:
        assert not left.exists()
        checkpoints.save(state_of(2), {"step": 2})
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_reading_removes_nothing(tmp_path):
    """An evaluation during a training run leaves what that is writing alone."""
    being_written = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    being_written.mkdir(parents=True)
    with Checkpoints(tmp_path, write=False):
        pass
    assert being_written.exists()


def test_a_full_disk(tmp_path):
    """An error that says what to do; the older checkpoints are whole, and it goes on later."""
    large = 1_000_000
    rng_state = state_of(1, large)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(rng_state, {"step": 1})
        checkpoints.wait()
        with files_of_at_most(100_000):
            with pytest.raises(CheckpointError, match=r"steps \[1\] are intact. Make room"):
                checkpoints.save(state_of(2, large), {"step": 2})
                checkpoints.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["1"]
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(state_of(0, large))
        chex.assert_trees_all_equal(state, rng_state)
        checkpoints.save(state_of(2, large), {"step": 2})
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file is a file, so it cannot be the work directory"):
        check_writable(tmp_path / "file" / "run")
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot be written"):
        check_writable(tmp_path / "locked")
