"""The trained TINY network on real CIFAR-10, from its file to the metrics of `eval.py`."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from mdeq_jax.convert import load_torch_file
from mdeq_jax.data import load_dataset
from mdeq_jax.data.vision.tfds_records import open_split
from mdeq_jax.engine import prepare
from mdeq_jax.training import evaluate
from tests.helpers.networks import load_config


@pytest.fixture(scope="module", params=[200, pytest.param(1000, marks=pytest.mark.slow)])
def reference(request, reference_dir):
    """Positions, labels and logits of the original on some or all of its 1,000 test images."""
    arrays = np.load(reference_dir / "mdeq_tiny_cifar10_logits.npz")
    return {name: arrays[name][:: 1000 // request.param] for name in ("index", "labels", "logits")}


@pytest.fixture(scope="module")
def dataset(reference_dir, reference):
    """CIFAR-10 with the reference's images alone to evaluate."""
    config = load_config("cifar10_tiny").data
    config.data_dir = str(reference_dir.parent / "data" / "tfds")
    if not (reference_dir.parent / "data" / "tfds").is_dir():
        pytest.skip(f"CIFAR-10 is not here ({config.data_dir})")
    source, _ = open_split(config.data_dir, "cifar10", "test", ("image",))
    ids = [record["id"] for record in source.__getitems__(range(len(source)))]
    assert min(ids) == b"test_airplane_0000"
    dataset = load_dataset(config)
    # Ids sort by class and number, as the positions count.
    chosen = np.argsort(ids)[reference["index"]]
    kept = {name: getattr(dataset.eval, name)[chosen] for name in ("images", "labels")}
    np.testing.assert_array_equal(kept["labels"], reference["labels"])
    return dataclasses.replace(dataset, eval=dataclasses.replace(dataset.eval, **kept))


@pytest.fixture(scope="module")
def workdir(reference_dir, tmp_path_factory):
    """The file, converted by the command."""
    path = tmp_path_factory.mktemp("converted") / "tiny"
    weights = reference_dir / "mdeq_tiny_cifar10_legacy.pkl"
    command = [sys.executable, "convert_torch_weights.py", "--config=configs/cifar10_tiny.py"]
    result = subprocess.run(
        [*command, f"--input={weights}", f"--output={path}"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for line in (
        "parameters: 158,890",
        "recognised as: configs/cifar10_tiny.py",
        "ignored by name",
    ):
        assert line in result.stdout
    return path


def test_both_forms_of_the_file_are_equal_to_torchs(reference_dir):
    torch = pytest.importorskip("torch")
    paths = [reference_dir / f"mdeq_tiny_cifar10{form}.pkl" for form in ("", "_legacy")]
    expected = torch.load(paths[0], weights_only=True)
    for path in paths:
        arrays = load_torch_file(path)
        assert list(arrays) == list(expected)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name].numpy())


@pytest.mark.slow
def test_evaluation_of_the_converted_checkpoint(workdir, dataset, reference, monkeypatch):
    """The accuracy after 18 Broyden steps; `eval.py` prints what `evaluate` returns."""
    monkeypatch.setattr(prepare, "load_dataset", lambda _: dataset)
    config = load_config("cifar10_tiny")
    config.eval.batch_size = 100
    metrics = evaluate(config, workdir)
    original = np.mean(reference["logits"].argmax(1) == reference["labels"])
    print(f"accuracy {metrics['eval/accuracy']:.4f}, the original's {original:.4f}")
    assert metrics["eval/examples"] == len(reference["labels"])
    assert metrics["eval/accuracy"] == pytest.approx(original, abs=0.005)
