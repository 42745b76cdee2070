"""Classes of images in a folder."""

import csv
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.data import load_dataset
from mdeq_jax.models import build_model
from mdeq_jax.tasks import TrainedModel, build_task
from mdeq_jax.tasks.idle_time import IdleTime
from tests.helpers.tiny import SINGLE_SCALE

COUNT = 20


@pytest.fixture(scope="module", params=["off", "on", "auto"])
def trained(request, tiny_config):
    """A network as it was initialised; one image at a time makes room for the next, or none."""
    if request.param == "auto":  # the second and later batches go on with slots
        patch = pytest.MonkeyPatch()
        request.addfinalizer(patch.undo)
        patch.setattr(IdleTime, "is_worth_compiling", lambda self, _: True)
    batching = {"eval.continuous_batching": request.param, "eval.slots": 3}
    config = tiny_config({**SINGLE_SCALE, "eval.batch_size": 8, **batching})
    model = build_model(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return TrainedModel(config, model, jax.device_get(variables), 0)


def test_files_get_the_classes_of_the_same_examples(trained, tmp_path):
    """Evaluation images as files; then a damaged one, which is an error or is left out."""
    split = load_dataset(trained.config.data).eval
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, image in enumerate(split.images[:COUNT]):
        path = folder / ("more" if i % 2 else "") / f"{i:03}.png"
        cv2.imwrite(str(path), np.round(image * (255 / 16)).astype(np.uint8))
    task = build_task(trained.config)
    assert task.predict(trained, folder, tmp_path).endswith(f"predictions.csv: {COUNT} images.")
    with (tmp_path / "predictions.csv").open() as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    rows = [rows[f"{i:03}"] for i in range(COUNT)]
    batch, _ = split.make_batch(np.arange(COUNT), (0, 0))
    logits = trained.model.apply(trained.variables, batch["image"]).logits
    probabilities = np.asarray(jax.nn.softmax(logits))
    # Pixels are rounded to 8 bits in the files.
    assert np.mean([int(row["class"]) for row in rows] == probabilities.argmax(1)) >= 0.95
    shares = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(shares, probabilities.max(1), atol=0.02)

    (folder / "000.png").write_bytes(b"nothing")
    before = (tmp_path / "predictions.csv").read_text()
    with pytest.raises(ValueError, match=r"000\.png: neither a JPEG nor a PNG"):
        task.predict(trained, folder, tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == before
    config = trained.config.copy_and_resolve_references()
    config.data.on_error = "skip"
    elsewhere = config.copy_and_resolve_references()
    elsewhere.data.update(name="image_folder", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="image_folder"):
        task.predict(trained._replace(config=elsewhere), folder, tmp_path)
    text = task.predict(trained._replace(config=config), folder, tmp_path)
    assert text.endswith(f"{COUNT - 1} images.")
    expected = (tmp_path / "predictions.csv").read_text()
    load_dataset(config.data).save_to(tmp_path)  # as training does
    task.predict(trained._replace(config=elsewhere), folder, tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == expected


def test_an_empty_folder(trained, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        build_task(trained.config).predict(trained, tmp_path / "none", tmp_path)
