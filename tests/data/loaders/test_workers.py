"""Worker processes: the same batches whatever their number, resume, errors, sudden death."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import chex
import psutil
import pytest

from mdeq_jax.data import EvalLoader, Prefetcher, TrainLoader, load_dataset


@pytest.fixture
def dataset(data_config, image_folder):
    config = data_config(
        name="image_folder", data_dir=str(image_folder), image_size=(16, 16), augment=True
    )
    return load_dataset(config)


def assert_equal(a, b):
    chex.assert_trees_all_equal(a, b, strict=True)


@pytest.mark.parametrize("num_workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_the_workers(dataset, num_workers):
    here = TrainLoader(dataset, 4, seed=5)
    there = TrainLoader(dataset, 4, seed=5, num_workers=num_workers)
    for _ in range(10):
        assert_equal(next(there), next(here))
    assert there.get_state() == here.get_state()
    there.set_state({**there.get_state(), "step": 3})
    here.set_state({**here.get_state(), "step": 3})
    assert_equal(next(there), next(here))
    there.close()
    if num_workers == 2:
        pairs = zip(EvalLoader(dataset, 2, num_workers=2), EvalLoader(dataset, 2), strict=True)
        for a, b in pairs:
            assert_equal(a, b)


RESUME = """
import hashlib, json, sys
from configs import default
from mdeq_jax.data import TrainLoader, load_dataset
if __name__ == "__main__":
    config = default.get_config().data
    config.update(name="image_folder", data_dir=sys.argv[1], image_size=(16, 16), augment=True)
    loader = TrainLoader(load_dataset(config), 4, seed=5, num_workers=int(sys.argv[3]))
    loader.set_state(json.loads(sys.argv[2]))
    print(hashlib.sha256(next(loader)["image"].tobytes()).hexdigest())
    loader.close()
"""


@pytest.mark.parametrize(("stop", "num_workers"), [(0, 0), (3, 1), (5, 2)])
def test_a_new_process_goes_on_exactly(dataset, image_folder, tmp_path, stop, num_workers):

    loader = TrainLoader(dataset, 4, seed=5)
    for _ in range(stop):
        next(loader)
    state = json.dumps(loader.get_state())
    expected = hashlib.sha256(next(loader)["image"].tobytes()).hexdigest()
    script = tmp_path / "resume.py"
    script.write_text(RESUME)
    command = [sys.executable, str(script), str(image_folder), state, str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == expected


def test_errors_come_from_the_workers(dataset, data_config, image_folder):
    path = image_folder / "train/ant/0.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    loader = TrainLoader(dataset, 18, num_workers=2)
    with pytest.raises(ValueError, match=r"train/ant/0.jpg: truncated JPEG.*on_error='skip'"):
        next(loader)
    loader.close()
    config = data_config(
        name="image_folder", data_dir=str(image_folder), image_size=(16, 16), on_error="skip"
    )
    loader = TrainLoader(load_dataset(config), 18, num_workers=1)
    assert next(loader)["image"].shape == (18, 16, 16, 3)
    assert sum(loader.skipped.values()) == 1
    loader.close()


def worker_processes():
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any("spawn_main" in part for part in child.cmdline())
    ]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_dies_is_an_error(dataset, num_workers):
    before = {child.pid for child in worker_processes()}
    loader = TrainLoader(dataset, 4, num_workers=num_workers)
    with Prefetcher(loader, lambda batch: batch) as prefetcher:
        next(prefetcher)
        mine = [child for child in worker_processes() if child.pid not in before]
        assert len(mine) == num_workers
        os.kill(mine[-1].pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="exit code -9") as info:
            for _ in range(100):
                next(prefetcher)
    assert time.monotonic() - start < 30
    assert any("lower config.data.num_workers" in note for note in info.value.__notes__)
    loader.close()


def test_bad_number_of_workers(dataset):
    with pytest.raises(ValueError, match="num_workers is -1, but must be 0"):
        TrainLoader(dataset, 4, num_workers=-1)
