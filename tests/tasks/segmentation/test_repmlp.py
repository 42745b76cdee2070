"""RepMLP-ResNet and RepMLPNet as backbones: from a classifier, trained, deployed, evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.engine.deployment import deploy_workdir
from mdeq_jax.engine.evaluation import load_trained
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.models import build_model
from mdeq_jax.tasks.segmentation.segmenter import Segmenter
from mdeq_jax.tasks.segmentation.settings import InferenceSettings
from mdeq_jax.training import evaluate, train_and_evaluate
from tests.helpers.synthetic_images import encode, write
from tests.helpers.tiny import override

COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
SIDE = 32  # of training images, and so of the windows
VALIDATION = (28, 52)  # lower than a window, and wider
BACKBONES = {
    "repmlp": dict(
        num_blocks=(1, 2, 1, 1), channels=(8, 16, 16, 16, 16), partition=(2, 2), groups=1
    ),
    "repmlpnet": dict(channels=(8, 16), num_blocks=(1, 1), partitions=(8, 4), sharesets=(1, 4)),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Blocks of three colours, each of which is a class."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for split, count, size in (("train", 16, (SIDE, SIDE)), ("val", 2, VALIDATION)):
        for i in range(count):
            classes = rng.integers(0, 3, (4, 7)).repeat(8, axis=0).repeat(8, axis=1)
            classes = classes[: size[0], : size[1]].astype(np.uint8)
            write(root / split / "images" / f"{i}.png", encode(".png", COLORS[classes]))
            write(root / split / "labels" / f"{i}.png", encode(".png", classes))
    rows = [f"{i},{name},#{i}00000," for i, name in enumerate(("red", "green", "blue"))]
    write(root / "classes.csv", "\n".join(["id,name,color,ignored", *rows]).encode())
    return root


def segmenter_config(name, data_dir):
    config = default.get_config(f"{name}_segmenter")
    config.model.update(**BACKBONES[name], num_classes=3)
    config.data.update(name="image_label_folder", data_dir=str(data_dir), image_size=(SIDE, SIDE))
    config.data.eval_image_size = VALIDATION
    config.train.update(batch_size=8, epochs=15.0, learning_rate=1e-2)
    config.eval.update(every_epochs=15.0, batch_size=2)
    config.log.tensorboard = config.log.convergence_plot = False
    config.checkpoint.every_epochs = 15.0
    return config


@pytest.mark.parametrize("name", ["repmlp", pytest.param("repmlpnet", marks=pytest.mark.slow)])
def test_from_a_classifier_trained_deployed_and_evaluated(name, data_dir, tmp_path):
    classifier = default.get_config("repmlp_resnet" if name == "repmlp" else "repmlpnet")
    classifier.model.update(BACKBONES[name])
    classifier.data.image_size = (SIDE, SIDE)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    variables = jax.jit(build_model(classifier).init)(jax.random.key(1), images)
    save_variables(variables, classifier, tmp_path / "classifier")

    config = segmenter_config(name, data_dir)
    config.init.from_checkpoint = str(tmp_path / "classifier")
    trained, deployed = tmp_path / "trained", tmp_path / "deployed"
    train_and_evaluate(config, trained)
    summary = deploy_workdir(config, trained, deployed)
    pixels = 2 * VALIDATION[0] * VALIDATION[1]
    assert f"same prediction: {pixels:,} of {pixels:,}" in summary

    merged = override(config.copy_and_resolve_references(), {"model.deployed": True})
    before, after = evaluate(config, trained), evaluate(merged, deployed)
    assert before["eval/pixel_accuracy"] > 0.8  # chance is a third
    assert after["eval/pixel_accuracy"] == before["eval/pixel_accuracy"]
    assert abs(after["eval/loss"] - before["eval/loss"]) < 1e-5
    head = [
        load_variables(c, w)[0]["params"]["head"]
        for w, c in ((trained, config), (deployed, merged))
    ]
    jax.tree.map(np.testing.assert_array_equal, *head)

    segmenter = Segmenter(load_trained(merged, deployed, "latest"))
    image = COLORS[np.zeros((20, 70), int)]
    prediction, z_star = segmenter(image)
    assert prediction.classes.shape == (20, 70) and prediction.nfe == 0 and z_star is None
    assert np.mean(prediction.classes == 0) > 0.8
    assert np.isnan(segmenter.residual(image)).all()


def test_windows_are_of_the_size_that_the_network_takes(data_dir):
    config = segmenter_config("repmlp", data_dir)
    settings = InferenceSettings.from_config(config)
    assert settings.window == settings.least == (SIDE, SIDE) and settings.stride == (21, 21)
    config.eval.window = (64, 64)
    with pytest.raises(ValueError, match=r"eval\.window=\(64, 64\) must be None or \(32, 32\)"):
        InferenceSettings.from_config(config)


def test_the_size_of_the_last_convolution(data_dir):
    for name in BACKBONES:
        config = segmenter_config(name, data_dir)
        config.model.final_conv_kernel = 4
        with pytest.raises(ValueError, match=r"final_conv_kernel must be 1, 3 or 5; got 4"):
            build_model(config)
