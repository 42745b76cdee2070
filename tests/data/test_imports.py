"""Importing loads no heavy library, and neither training nor evaluation imports TensorFlow."""

import os
import subprocess
import sys

SCRIPT = """
import sys
import mdeq_jax, mdeq_jax.data
heavy = {"cv2", "grain", "jax", "sklearn", "tensorflow_datasets"} & sys.modules.keys()
assert not heavy, f"import mdeq_jax.data imports {heavy}"

from configs import default
from mdeq_jax.data import EvalLoader, TrainLoader, load_dataset
if __name__ == "__main__":
    config = default.get_config().data
    name, data_dir, side = sys.argv[1:]
    config.update(name=name, data_dir=data_dir, image_size=(int(side), int(side)), augment=True)
    dataset = load_dataset(config)
    loader = TrainLoader(dataset, 8, num_workers=1)
    next(loader)
    loader.close()
    next(iter(EvalLoader(dataset, 8)))
    assert "tensorflow" not in sys.modules
    print("fine")
"""


def run(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr


def test_digits(tmp_path):
    run(tmp_path, "digits", "", "8")


def test_image_folder_with_a_worker(tmp_path, image_folder):
    run(tmp_path, "image_folder", str(image_folder), "16")


def test_cifar10(tmp_path, cifar_dir):
    run(tmp_path, "cifar10", cifar_dir, "32")
