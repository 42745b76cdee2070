"""A small Cityscapes in the official layout: training from a classifier, evaluation, pictures."""

import csv
import json
from pathlib import Path

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cityscapes_small, default
from mdeq_jax.data import load_dataset
from mdeq_jax.data.sets import cityscapes
from mdeq_jax.diagnostics.convergence import convergence_traces
from mdeq_jax.engine.evaluation import load_trained
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.models import build_model
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.segmentation.segmenter import Segmenter, denormalized
from mdeq_jax.training import evaluate, predict, save_predictions, train_and_evaluate

# One resolution, plain iteration and one-step gradients: quick to compile.
SHARED = dict(
    channels=(8,),
    num_blocks=(1,),
    big_kernels=(0,),
    expansion=1,
    num_groups=4,
    downsample_times=2,
    post_gn_affine=True,
    dropout=0.0,
)
VALIDATION = ("frankfurt_000000_000294", "lindau_000001_000019")
SIZE = (28, 52)  # of its images


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3:
        picture = picture[..., ::-1]
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """leftImg8bit and gtFine, as they are unpacked."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    colors = np.zeros((34, 3), np.uint8)
    for label in cityscapes.LABELS[:-1]:
        colors[label.id] = label.color

    def add(split, stem, height, width):
        ids = rng.choice([0, 7, 11, 21, 23, 26], (height, width)).astype(np.uint8)
        ids = ids.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
        city = stem.split("_")[0]
        write(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", colors[ids])
        write(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", ids)

    for i in range(8):
        add("train", f"ulm_{i:06d}_000019", 32, 64)
    for stem in VALIDATION:
        add("val", stem, *SIZE)
    return root


def small_classifier():
    config = default.get_config()
    config.model.update(SHARED | dict(head_channels=(2,), final_channels=8))
    return config


@pytest.fixture(scope="module")
def config(tree, tmp_path_factory):
    """Cityscapes SMALL with a small network, started from a classifier's work directory."""
    source = tmp_path_factory.mktemp("classifier")
    classifier = small_classifier()
    variables = jax.jit(build_model(classifier).init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    save_variables(variables, classifier, source)

    config = cityscapes_small.get_config()
    config.model.update(SHARED)
    for solver in (config.solver.forward, config.solver.backward):
        solver.update(dict(name="fixed_point_iteration", max_steps=15, tol=0.3, stop_mode="rel"))
    config.gradient.name = "one_step"
    config.train.update(
        dict(batch_size=4, epochs=1.0, pretrain_steps=0, ohem_threshold=0.9, ohem_min_kept=100)
    )
    config.train.update(dict(random_forward_delta=0, learning_rate=1e-9, schedule="constant"))
    config.data.update(dict(data_dir=str(tree), image_size=(32, 32), base_size=64))
    config.data.eval_image_size = (28, 52)
    config.eval.batch_size = 2
    config.init.from_checkpoint = str(source)
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Two steps: work directory, metrics."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def segmenter(config, trained):
    return Segmenter(load_trained(config, trained[0], "latest"))


@pytest.fixture(scope="module")
def saved(config, trained, tmp_path_factory):
    """Pictures of the validation split: folder, metrics."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, save_predictions(config, trained[0], folder)


def test_stem_and_cell_are_the_classifiers(config, trained):
    variables, _ = load_variables(config, trained[0])
    theirs, _ = load_variables(small_classifier(), Path(config.init.from_checkpoint))
    for part in ("stem", "cell"):
        ours, expected = variables["params"][part], theirs["params"][part]
        chex.assert_trees_all_close(ours, expected, rtol=1e-7, atol=1e-6)
    assert variables["params"]["head"]["classifier"]["kernel"].shape == (1, 1, 8, 19)


def test_metrics_of_training_and_evaluation(config, trained):
    workdir, metrics = trained
    names = {f"eval/iou/{c.name}" for c in cityscapes.CLASSES}
    names |= {"eval/miou", "eval/pixel_accuracy", "eval/class_accuracy", "eval/loss"}
    assert names <= set(metrics)
    assert 0 <= metrics["eval/miou"] <= metrics["eval/pixel_accuracy"] <= 1
    assert np.isnan(metrics["eval/iou/train"])  # in no map
    assert np.isfinite(metrics["train/loss"]) and metrics["eval/examples"] == 2
    json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    again = evaluate(config, workdir)
    assert again["eval/miou"] == metrics["eval/miou"]


def test_label_maps_are_as_the_server_takes_them(saved, tree):
    folder, _ = saved
    files = sorted(path.relative_to(folder / "label_ids") for path in folder.rglob("*labelIds.png"))
    assert [str(path) for path in files] == [f"{stem}_pred_labelIds.png" for stem in VALIDATION]
    ids = {c.id for c in cityscapes.CLASSES}
    for path in files:
        data = (folder / "label_ids" / path).read_bytes()
        assert data[24:26] == bytes([8, 0])  # 8 bits, grey
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture.shape == SIZE and picture.dtype == np.uint8
        assert set(np.unique(picture)) <= ids


def test_colours_and_overlays(saved, tree):
    folder, _ = saved
    color_of = {c.id: c.color for c in cityscapes.CLASSES}

    def read(kind, name):
        return cv2.imread(str(folder / kind / name), -1)[..., ::-1]

    for stem in VALIDATION:
        ids = cv2.imread(str(folder / f"label_ids/{stem}_pred_labelIds.png"), -1)
        colored = read("color", f"{stem}_pred_color.png")
        expected = np.array([color_of[i] for i in ids.ravel()], np.uint8).reshape(*SIZE, 3)
        np.testing.assert_array_equal(colored, expected)
        city = stem.split("_")[0]
        image = cv2.imread(str(tree / "leftImg8bit/val" / city / f"{stem}_leftImg8bit.png"))
        middle = (image[..., ::-1].astype(float) + colored) / 2
        assert np.abs(read("overlay", f"{stem}_pred_overlay.png") - middle).max() <= 0.5
    assert (folder / "contact_sheet.png").stat().st_size > 10_000


def test_metrics_of_the_pictures_are_their_own(saved, tree):
    """Accuracy counted from the files that were written."""
    folder, metrics = saved
    right, counted = 0, 0
    for stem in VALIDATION:
        city = stem.split("_")[0]
        truth = cv2.imread(str(tree / "gtFine/val" / city / f"{stem}_gtFine_labelIds.png"), -1)
        ids = cv2.imread(str(folder / "label_ids" / f"{stem}_pred_labelIds.png"), -1)
        right, counted = right + np.sum(ids == truth), counted + np.sum(truth > 0)
    assert metrics["eval/pixel_accuracy"] == right / counted
    assert metrics["eval/examples"] == 2


def test_residual_of_the_pixels_is_that_of_the_image(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    prediction, z_star = segmenter(image)
    assert z_star[0].shape == (1, 7, 13, 8)
    residual = segmenter.residual(image)
    assert residual.shape == (7, 13)
    np.testing.assert_allclose(np.sqrt(np.mean(residual**2)), prediction.rel_residual, rtol=1e-4)


def test_convergence_is_of_what_evaluation_solves(config, trained):
    """At its scale: the lowest residual of an image's trace is that of its prediction."""
    half = config.copy_and_resolve_references()
    with half.unlocked():
        half.eval.scales, half.data.eval_image_size = (0.5,), None
        half.solver.forward.tol = 0.0
    dataset, task, model = load_dataset(half.data), build_task(half), build_model(half)
    variables, _ = load_variables(half, trained[0])
    traces = convergence_traces(model, variables, task, dataset, half)
    segmenter = Segmenter(load_trained(half, trained[0], "latest"))
    batch, _ = dataset.eval.make_batch(np.arange(2), (0, 0))
    predictions = [segmenter(denormalized(image))[0] for image in batch["image"]]
    assert traces.forward.shape[1] == traces.backward.shape[1] == 2
    lowest = np.nanmin(traces.forward, axis=0)
    np.testing.assert_allclose(lowest, [p.rel_residual for p in predictions], rtol=1e-3)


def test_the_residual_is_that_of_the_start(segmenter):
    """From an equilibrium there is less of it than from zero."""
    image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)
    _, z_star = segmenter(image)
    warm, _ = segmenter(image, z_star)
    residual = segmenter.residual(image, z_star)
    np.testing.assert_allclose(np.sqrt(np.mean(residual**2)), warm.rel_residual, rtol=1e-4)
    assert residual.max() < segmenter.residual(image).max()


def test_frames_start_from_the_last_equilibrium(config, trained, tree, tmp_path):
    """Of two equal frames the second is solved at once."""
    frame = next((tree / "leftImg8bit/val").rglob("*.png")).read_bytes()
    (tmp_path / "frames").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "frames" / name).write_bytes(frame)
    text = predict(config, trained[0], tmp_path / "frames")
    out = trained[0] / "predictions"
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["warm_start"] for row in rows] == ["0", "1"]
    assert rows[1]["nfe"] == "1" and rows[1]["nfe_from_zero"] == rows[0]["nfe"] != "1"
    assert f"Wrote {out}: 2 images, NFE" in text and "1 frame was solved both ways" in text
    assert f"From zero: NFE {rows[0]['nfe']}.0" in text and "Warm start: NFE 1.0" in text
    assert "it reached the residual from zero after 1.0" in text
    for kind in ("label_ids/0_pred_labelIds", "color/1_pred_color", "overlay/1_pred_overlay"):
        assert cv2.imread(str(out / f"{kind}.png"), -1).shape[:2] == SIZE
