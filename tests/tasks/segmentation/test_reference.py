"""Whole-image evaluation of the original's small segmentation network, in float64."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.models import ModelOutput, build_model
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks import build_task

NAME = "seg_four_scales"


def test_whole_image_evaluation_is_the_originals(reference_dir, x64):
    """Logits at the images' size, their metric sums, and the loss, from the reference's logits."""
    torch = pytest.importorskip("torch")
    settings = json.loads((reference_dir / "small_models.json").read_text())[NAME]
    reference = np.load(reference_dir / f"{NAME}.npz")
    config = default.get_config()
    for field in set(settings) & set(config.model):
        value = settings[field]
        config.model[field] = tuple(value) if isinstance(value, list) else value
    config.model.name, config.data.image_size = "mdeq_segmenter", None
    config.solver.forward.update(dict(tol=1e-9, max_steps=200))
    classes = settings["num_classes"]
    weights = tuple(0.5 + 0.25 * i for i in range(classes))
    config.train.class_weights = weights

    task, model = build_task(config), build_model(config)
    variables = convert_state_dict(load_torch_file(reference_dir / f"{NAME}.pkl"), config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), variables)
    images = reference["x"][:1].transpose(0, 2, 3, 1).astype(np.float64)
    labels = np.random.default_rng(0).integers(0, classes + 1, images.shape[:3])
    labels[labels == classes] = 255
    batch = {"label": labels, "mask": np.ones(1)}

    out = jax.jit(partial(task.infer, model))(variables, images)
    assert out.solution.rel_residual.max() < 1e-9
    logits, sums = out.logits, task.metric_sums(out, batch)

    def loss_of(logits):
        return task.loss(ModelOutput(logits), batch)

    loss = jax.vmap(loss_of, axis_name=BATCH_AXIS)(logits[None])[0]

    theirs = torch.from_numpy(reference["logits"][:1]).double()
    resized = torch.nn.functional.interpolate(theirs, (64, 96), mode="bilinear", align_corners=True)
    expected = resized.numpy().transpose(0, 2, 3, 1)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert logits.shape == (1, 64, 96, classes) and error < 1e-6

    criterion = torch.nn.CrossEntropyLoss(torch.tensor(weights).double(), ignore_index=255)
    np.testing.assert_allclose(loss, criterion(resized, torch.from_numpy(labels)), rtol=1e-6)
    plain = torch.nn.CrossEntropyLoss(ignore_index=255)
    np.testing.assert_allclose(sums["loss"], plain(resized, torch.from_numpy(labels)), rtol=1e-6)
    counted = labels[0] != 255
    cells = labels[0][counted] * classes + expected[0].argmax(-1)[counted]
    confusion = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    np.testing.assert_array_equal(sums["confusion"], confusion)
