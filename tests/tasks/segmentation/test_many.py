"""Images of several sizes, together or one at a time: the same predictions, in order."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.models import build_model
from mdeq_jax.tasks import TrainedModel, build_task
from mdeq_jax.tasks.segmentation import many
from mdeq_jax.tasks.segmentation.many import batch_size_for, segment_many
from mdeq_jax.tasks.segmentation.segmenter import Segmenter
from tests.helpers.tiny import override

SIZES = [(16, 24), (8, 8), *[(16, 24)] * 3, (12, 20), (16, 24), *[(12, 20)] * 2, *[(16, 24)] * 3]


@pytest.fixture(scope="module")
def trained():
    """A network with random weights, whose solves take different numbers of steps."""
    fields = {
        "model.name": "mdeq_segmenter",
        "model.channels": (8,),
        "model.num_blocks": (1,),
        "model.big_kernels": (0,),
        "model.expansion": 1,
        "model.num_groups": 4,
        "model.num_classes": 11,
        "data.name": "camvid",
        "data.image_size": (16, 24),
        "solver.forward.max_steps": 20,
        "solver.forward.tol": 1e-3,
        "eval.batch_size": 3,
        "eval.slots": 2,
        "eval.continuous_batching": "on",
    }
    config = override(default.get_config(), fields)
    model = build_model(config)
    variables = jax.jit(model.init)(jax.random.key(2), jnp.zeros((1, 16, 24, 3)))
    variables = jax.tree.map(lambda x: x * 20 if x.ndim == 4 else x, variables)
    return TrainedModel(config, model, jax.device_get(variables), 0)


@pytest.fixture(scope="module")
def images():
    rng, images = np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES):
        cell = 1 + number % 4  # pixels of one colour
        colors = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        images.append(colors.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width])
    return images


@pytest.fixture(scope="module")
def alone(trained, images):
    segmenter = Segmenter(trained)
    return [segmenter(image)[0] for image in images]


@pytest.mark.parametrize("patience", [4, 0])
def test_predictions_are_those_of_each_image_alone(trained, images, alone, patience, monkeypatch):
    monkeypatch.setattr(many, "PATIENCE", patience)
    items = zip(range(len(images)), images)
    results = list(segment_many(build_task(trained.config), Segmenter(trained), items, len(images)))
    assert [number for number, _ in results] == list(range(len(images)))
    assert len({one.nfe for one in alone}) > 3
    for (_, ours), theirs in zip(results, alone):
        assert (ours.nfe, ours.steps, ours.converged) == (
            theirs.nfe,
            theirs.steps,
            theirs.converged,
        )
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-4)


def test_a_folder_of_pictures(trained, images, alone, tmp_path):
    """`--predict` writes the label maps of solves from zero."""
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), image[..., ::-1])
    text = build_task(trained.config).predict(trained, tmp_path, tmp_path / "out")
    assert f"{len(images)} images, NFE {np.mean([one.nfe for one in alone]):.1f}" in text
    segmenter = Segmenter(trained)
    ids = np.array([c.id for c in segmenter.classes])
    for number, theirs in enumerate(alone):
        path = tmp_path / "out/predictions/label_ids" / f"{number:02}_pred_labelIds.png"
        np.testing.assert_array_equal(cv2.imread(str(path), -1), ids[theirs.classes])


def test_one_at_a_time_unless_it_is_on(trained):
    sizes = {}
    for choice in ("on", "auto", "off"):
        config = trained.config.copy_and_resolve_references()
        config.eval.update(continuous_batching=choice, batch_size=8 * jax.device_count())
        task = build_task(config)
        sizes[choice] = [batch_size_for(task, config, s) for s in ((16, 24), (32, 24), (99, 99))]
    assert sizes == {"on": [8, 4, 1], "auto": [1] * 3, "off": [1] * 3}
