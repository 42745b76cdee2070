"""A small Cityscapes in the official layout: training from a classifier, evaluation, pictures."""

import csv
import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cityscapes_small, default
from mdeq_jax.data import load_dataset
from mdeq_jax.data.sets import cityscapes
from mdeq_jax.data.vision.frames import Frame, read_frames
from mdeq_jax.diagnostics.convergence import convergence_traces
from mdeq_jax.engine.warm_start import load_variables, save_variables
from mdeq_jax.models import build_model
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.segmentation.pictures import Pictures
from mdeq_jax.tasks.segmentation.predict import (
    describe_prediction,
    predict_all,
    predict_folder,
    save_predictions,
)
from mdeq_jax.tasks.segmentation.segmenter import Prediction, Segmenter, denormalized
from mdeq_jax.training import evaluate, predict_classes, train_and_evaluate

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
    """Two steps: work directory, figures."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def saved(config, trained, tmp_path_factory):
    """Pictures of the validation split: folder, figures."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, save_predictions(config, trained[0], folder)


def test_stem_and_cell_are_the_classifiers(config, trained):
    variables, _ = load_variables(trained[0], config)
    theirs, _ = load_variables(Path(config.init.from_checkpoint), small_classifier())
    for part in ("stem", "cell"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            variables["params"][part],
            theirs["params"][part],
        )
    assert variables["params"]["head"]["classifier"]["kernel"].shape == (1, 1, 8, 19)


def test_figures_of_training_and_evaluation(config, trained):
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


def test_figures_of_the_pictures_are_their_own(saved, tree):
    """Accuracy counted from the files that were written."""
    folder, figures = saved
    right, counted = 0, 0
    for stem in VALIDATION:
        city = stem.split("_")[0]
        truth = cv2.imread(str(tree / "gtFine/val" / city / f"{stem}_gtFine_labelIds.png"), -1)
        ids = cv2.imread(str(folder / "label_ids" / f"{stem}_pred_labelIds.png"), -1)
        right, counted = right + np.sum(ids == truth), counted + np.sum(truth > 0)
    assert figures["eval/pixel_accuracy"] == right / counted
    assert figures["eval/examples"] == 2


def test_residual_of_the_pixels_is_that_of_the_image(config, trained):
    segmenter = Segmenter(config, trained[0])
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
    variables, _ = load_variables(trained[0], half)
    traces = convergence_traces(model, variables, task, dataset, half)
    segmenter = Segmenter(half, trained[0])
    batch, _ = dataset.eval.make_batch(np.arange(2), (0, 0))
    predictions = [segmenter(denormalized(image))[0] for image in batch["image"]]
    assert traces.forward.shape[1] == traces.backward.shape[1] == 2
    lowest = np.nanmin(traces.forward, axis=0)
    np.testing.assert_allclose(lowest, [p.rel_residual for p in predictions], rtol=1e-3)


def test_the_residual_is_that_of_the_start(config, trained):
    """From an equilibrium there is less of it than from zero."""
    segmenter = Segmenter(config, trained[0])
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
    figures = predict_folder(config, trained[0], tmp_path / "frames", tmp_path / "out")
    with (tmp_path / "out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["warm_start"] for row in rows] == ["0", "1"]
    assert rows[1]["nfe"] == "1" and rows[1]["nfe_from_zero"] == rows[0]["nfe"] != "1"
    assert figures["images"] == 2 and figures["compared"] == 1
    assert (figures["nfe_warm"], figures["nfe_from_zero"]) == (1, int(rows[0]["nfe"]))
    assert figures["nfe_warm_to_same"] == 1
    assert f"{rows[0]['nfe']}.0" in describe_prediction(figures)
    for kind in ("label_ids/0_pred_labelIds", "color/1_pred_color", "overlay/1_pred_overlay"):
        assert cv2.imread(str(tmp_path / f"out/{kind}.png"), -1).shape[:2] == SIZE


def test_evaluations_to_a_residual():
    trace = np.array([0.5, 0.2, 0.3, 0.1, np.nan])
    solve = Prediction(None, None, 5, 0.1, True, 4, trace)
    assert [solve.nfe_to(r) for r in (0.9, 0.5, 0.25, 0.1, 0.01)] == [2, 2, 3, 5, 5]
    at_once = Prediction(None, None, 1, 0.05, True, 0, np.full(5, np.nan))
    assert at_once.nfe_to(0.1) == 1


def test_a_frame_of_another_size_starts_from_zero():
    sizes = [(2, 3, 3), (2, 3, 3), (4, 3, 3), (4, 3, 3)]
    frames = [Frame(str(i), np.full(size, i, np.uint8)) for i, size in enumerate(sizes)]

    def segmenter(image, z0=None):
        return ("from", z0), int(image[0, 0, 0])  # the equilibrium is the frame's number

    warm = [prediction[1] for _, prediction, _, _ in predict_all(segmenter, iter(frames), True)]
    assert warm == [None, 0, None, 2]
    cold = [result[1:] for result in predict_all(segmenter, iter(frames), False)]
    assert cold == [(("from", None), None, None)] * 4


def test_frames_of_a_video(tmp_path):
    path = tmp_path / "drive.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for value in (0, 100, 200):
        video.write(np.full((16, 32, 3), value, np.uint8))
    video.release()
    count, frames = read_frames(path)
    frames = list(frames)
    assert count == len(frames) == 3
    assert [frame.name for frame in frames] == [f"drive_{i:06d}.png" for i in (1, 2, 3)]
    for frame, value in zip(frames, (0, 100, 200)):
        assert frame.image.shape == (16, 32, 3)
        assert np.abs(frame.image.astype(int) - value).max() < 8  # JPEG


def test_what_is_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_frames(tmp_path / "nowhere")
    (tmp_path / "text.mp4").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.mp4: not a video that OpenCV can read"):
        read_frames(tmp_path / "text.mp4")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.png: neither a JPEG nor a PNG"):
        list(read_frames(tmp_path).frames)


def test_damaged_pictures_are_named_or_skipped(tmp_path):
    for name in ("0", "1", "2"):
        write(tmp_path / f"{name}.png", np.full((4, 4, 3), 10, np.uint8))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"1\.png: truncated PNG"):
        list(read_frames(tmp_path).frames)
    count, frames = read_frames(tmp_path, on_error="skip")
    assert count == 3 and [frame.name for frame in frames] == ["0.png", "2.png"]


def test_pictures_that_differ_in_their_suffix_alone(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/1.jpg"):
        write(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"b/1\.jpg and .*b/1\.png would have the same results"):
        read_frames(tmp_path)


def test_names_with_dots(tmp_path):
    pictures = Pictures(tmp_path, cityscapes.CLASSES)
    image, classes = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)
    for i, file in enumerate(("my.drive_000001.png", "my.drive_000002.png", "v1.5", "v1.6")):
        assert pictures.write(file, image, classes) == file.removesuffix(".png")
        assert len(list((tmp_path / "color").iterdir())) == i + 1


def test_two_pictures_of_one_name(tmp_path):
    pictures = Pictures(tmp_path, cityscapes.CLASSES)
    image, classes = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)
    pictures.write("a/1.png", image, classes)
    pictures.write("b/1.png", image, classes)
    with pytest.raises(ValueError, match=r"a/1\.jpg and a/1\.png would have the same results"):
        pictures.write("a/1.jpg", image, classes)


def test_pictures_need_a_segmenter(tmp_path):
    config = default.get_config()
    with pytest.raises(ValueError, match=r"need model\.name='mdeq_segmenter'"):
        predict_folder(config, tmp_path, tmp_path, tmp_path)


def test_pictures_need_the_classes_of_the_data_set(tmp_path):
    config = cityscapes_small.get_config()
    config.data.name = "camvid"
    with pytest.raises(ValueError, match=r"model\.num_classes=19, but camvid has 11 classes"):
        Segmenter(config, tmp_path)


@pytest.mark.parametrize(("field", "value"), [("flip", True), ("warm_start", False)])
def test_settings_that_a_classifier_has_no_use_for(tmp_path, field, value):
    config = default.get_config()
    config.eval[field] = value
    for use in (build_task, lambda config: predict_classes(config, tmp_path, tmp_path, tmp_path)):
        with pytest.raises(ValueError, match=rf"eval\.{field}={value} is for segmentation"):
            use(config)


@pytest.mark.parametrize("weights", [3, "imagenet", (1.0, 2.0), ("a",) * 19, (0.0,) * 19])
def test_class_weights_that_are_none(weights):
    config = cityscapes_small.get_config()
    config.train.class_weights = weights
    with pytest.raises(ValueError, match=r"train\.class_weights=.* must be one"):
        build_task(config)
