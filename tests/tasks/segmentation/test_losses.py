"""The losses of pixels against their definitions in numpy, and split over 1, 2 and 4 devices."""

import json
import subprocess
import sys

import numpy as np
import pytest

from configs import default
from mdeq_jax.tasks import build_task

CLASSES, IGNORED = 5, 255
WEIGHTS = (0.5, 1.0, 1.5, 2.0, 0.25)
# Settings of `config.train`. The second keeps by the threshold, the third by the number, the
# fourth asks for more pixels than there are.
SETTINGS = (
    {"class_weights": WEIGHTS},
    {"ohem_threshold": 0.3, "ohem_min_kept": 5},
    {"ohem_threshold": 1e-3, "ohem_min_kept": 60},
    {"ohem_threshold": 0.3, "ohem_min_kept": 100_000, "class_weights": WEIGHTS},
    {},
)


def make_batch():
    """Logits `[4, 3, 4, C]`, and labels `[4, 6, 9]`; the devices' shares have unequal counts."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4, 3, 4, CLASSES))
    labels = rng.integers(0, CLASSES, (4, 6, 9))
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    labels[1] = IGNORED  # a device may have nothing to learn from
    return logits, labels


def interpolation(size, new_size):
    """`[new_size, size]`: linear, the end points aligned."""
    position = np.linspace(0, size - 1, new_size)
    return np.stack([np.interp(position, range(size), row) for row in np.eye(size)], axis=1)


def definition(logits, labels, class_weights=None, ohem_threshold=None, ohem_min_kept=0):
    """Loss and its gradient with respect to the logits, pixel by pixel."""
    rows, columns = interpolation(3, 6), interpolation(4, 9)
    resized = np.einsum("ih,jw,bhwc->bijc", rows, columns, logits)
    probabilities = np.exp(resized) / np.exp(resized).sum(-1, keepdims=True)
    pixels = [tuple(i) for i in np.argwhere(labels != IGNORED)]
    of_class = {i: probabilities[i][labels[i]] for i in pixels}
    weight = {i: 1.0 if class_weights is None else class_weights[labels[i]] for i in pixels}
    if ohem_threshold is None:
        normaliser = sum(weight.values())
    else:
        ordered = sorted(of_class.values())
        limit = ordered[ohem_min_kept] if ohem_min_kept < len(ordered) else np.inf
        pixels = [i for i in pixels if of_class[i] < max(ohem_threshold, limit)]
        normaliser = len(pixels)
    loss, gradient = 0.0, np.zeros_like(resized)
    for i in pixels:
        loss -= weight[i] * np.log(of_class[i]) / normaliser
        gradient[i] = weight[i] * (probabilities[i] - np.eye(CLASSES)[labels[i]]) / normaliser
    return loss, np.einsum("ih,jw,bijc->bhwc", rows, columns, gradient), len(pixels)


def segmenter_config(**train):
    config = default.get_config()
    config.model.name, config.model.num_classes = "mdeq_segmenter", CLASSES
    config.train.update(train)
    return config


RUN = """
import json

import jax
import numpy as np

from mdeq_jax.models import ModelOutput
from mdeq_jax.tasks import build_task
from tests.tasks.segmentation.test_losses import SETTINGS, make_batch, segmenter_config

logits, labels = make_batch()
tasks = [build_task(segmenter_config(**settings)) for settings in SETTINGS]

def values_and_gradients(logits, labels):
    def loss(logits, task):
        return task.loss(ModelOutput(logits), {"label": labels})

    return [jax.value_and_grad(loss)(logits, task) for task in tasks]

results = []
for count in (1, 2, 4):
    run = jax.pmap(values_and_gradients, axis_name="batch", devices=jax.devices()[:count])
    parts = [x.reshape(count, 4 // count, *x.shape[1:]) for x in (logits, labels)]
    # As training does: the mean over devices, of the gradients too.
    results.append([
        [float(np.mean(value)), (np.asarray(gradient).reshape(logits.shape) / count).tolist()]
        for value, gradient in run(*parts)
    ])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def on_devices(run_script):
    """(loss, gradient) of each settings on 1, 2 and 4 devices, in float64."""
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        env={
            **run_script.environment(devices=4),
            "JAX_ENABLE_X64": "true",
            "PYTHONPATH": str(run_script.root),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return list(zip(*json.loads(result.stdout)))


@pytest.mark.parametrize(
    "number", range(len(SETTINGS)), ids=lambda i: ",".join(SETTINGS[i]) + str(i)
)
def test_equals_its_definition_however_it_is_split(on_devices, number):
    logits, labels = make_batch()
    loss, gradient, _ = definition(logits, labels, **SETTINGS[number])
    for value, derivative in on_devices[number]:
        np.testing.assert_allclose(value, loss, rtol=1e-12)
        np.testing.assert_allclose(derivative, gradient, rtol=1e-10, atol=1e-14)


def test_the_settings_keep_different_pixels():
    """The cases above are not one case."""
    kept = [definition(*make_batch(), **settings)[2] for settings in SETTINGS]
    assert kept[1] > 5 and kept[2] == 60 and kept[3] == kept[4] > max(kept[1:3])
    assert kept[4] < 4 * 6 * 9


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_weighted_mean_is_pytorchs(weights, x64):
    torch = pytest.importorskip("torch")
    logits, labels = make_batch()
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits.transpose(0, 3, 1, 2)), (6, 9), mode="bilinear", align_corners=True
    )
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = torch.nn.CrossEntropyLoss(weight, ignore_index=IGNORED)(
        resized, torch.from_numpy(labels)
    )
    np.testing.assert_allclose(definition(logits, labels, weights)[0], expected, rtol=1e-12)


BAD = [
    ({"class_weights": "camvid"}, r"train\.class_weights='camvid' must be one of \['cityscapes'\]"),
    ({"class_weights": "cityscapes"}, "for each of the 5 classes"),
    ({"class_weights": (1.0, 1.0, 1.0, 1.0, 0.0)}, "number above 0 for each of the 5 classes"),
    ({"ohem_threshold": 1.5}, r"ohem_threshold=1\.5 must be a probability"),
    ({"ohem_min_kept": 10}, "needs train.ohem_threshold"),
    ({"label_smoothing": 0.1}, "label_smoothing=0.1 is for classification"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[str(s) for s, _ in BAD])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build_task(segmenter_config(**settings))
