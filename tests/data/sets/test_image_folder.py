"""Folders of images: classes, transforms, and everything that can be wrong with them."""

import pathlib
import shutil
import tempfile
import unittest.mock

import cv2
import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from mdeq_jax.data import EvalLoader, TrainLoader, load_dataset
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD, Record
from mdeq_jax.data.vision.transforms import ClassificationTransform
from tests.helpers.synthetic_images import encode, picture, write


@pytest.fixture
def load(data_config, image_folder):
    def load(**fields):
        fields = dict(image_size=(32, 32), data_dir=str(image_folder)) | fields
        return load_dataset(data_config(name="image_folder", **fields))

    return load


def test_classes_and_labels(load):
    dataset = load()
    assert dataset.class_names == ("ant", "bee", "cow") and dataset.task == "classification"
    assert (dataset.num_train, dataset.num_eval, dataset.image_size) == (18, 9, (32, 32))
    batch = next(iter(EvalLoader(dataset, 9)))
    assert batch["image"].shape == (9, 32, 32, 3) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["label"], np.repeat([0, 1, 2], 3))


def test_evaluation_resizes_the_shorter_side_and_cuts_the_middle(load, image_folder):
    image = cv2.imread(str(image_folder / "val/ant/0.jpg"))[..., ::-1]  # 40 x 50
    resized = cv2.resize(image, (45, 36), interpolation=cv2.INTER_AREA)  # 36 = int(32 / 0.875)
    expected = augment.normalize(resized[2:34, 6:38], IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(next(iter(EvalLoader(load(), 1)))["image"][0], expected)


def test_augmentation_depends_on_example_and_epoch_only(load):
    split = load(augment=True).train
    one = split.make_batch(np.array([3, 7]), (0, 0))[0]["image"]
    two = split.make_batch(np.array([7, 1, 3]), (0, 0))[0]["image"]
    np.testing.assert_array_equal(one, two[[2, 0]])
    for key in ((0, 1), (1, 0)):
        assert not np.array_equal(one, split.make_batch(np.array([3, 7]), key)[0]["image"])


def test_output_range(load):
    batch = next(TrainLoader(load(augment=True), 18))["image"]
    low, high = (
        -np.array(IMAGENET_MEAN) / IMAGENET_STD,
        (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD,
    )
    assert (batch >= low - 1e-5).all() and (batch <= high + 1e-5).all()


def test_crops_are_mirrored_half_of_the_time():
    """Left to right the picture grows lighter; a mirrored crop grows darker."""
    image = np.broadcast_to(np.arange(0, 250, 2, dtype=np.uint8)[:, None], (100, 125, 3))
    record = Record("x", encode(".png", image), 0)
    transform = ClassificationTransform((16, 16), 1, train=True, convert_to_rgb=False)
    crops = [transform(record, np.random.default_rng(i))[0].astype(int) for i in range(400)]
    mirrored = np.mean([crop[0, 0, 0] > crop[0, -1, 0] for crop in crops])
    assert 0.43 < mirrored < 0.57


@pytest.mark.parametrize("train", [True, False])
def test_reduced_decoding_shows_the_same_picture(train):
    """A large JPEG is decoded at a fraction; a PNG of the same pixels is not."""
    image = picture(1200, 1600)
    transform = ClassificationTransform((64, 64), 1, train=train, convert_to_rgb=False)
    for seed in range(10):
        jpeg, png = (
            transform(Record("x", encode(s, image), 0), np.random.default_rng(seed))[0].astype(int)
            for s in (".jpg", ".png")
        )
        assert np.abs(jpeg - png).mean() < 3


BAD = {
    "truncated": (lambda data: data[: len(data) // 2], "truncated JPEG"),
    "grey": (lambda data: encode(".jpg", picture(40, 40)[..., 0]), "8-bit grey image"),
    "16-bit": (
        lambda data: encode(".png", picture(40, 40).astype(np.uint16) * 256),
        "16-bit RGB image",
    ),
    "text": (lambda data: b"<html>Not found</html>", "neither a JPEG nor a PNG"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_or_skipped(load, image_folder, kind):
    spoil, message = BAD[kind]
    for path in (image_folder / "train/bee/2.jpg", image_folder / "val/bee/1.jpg"):
        path.write_bytes(spoil(path.read_bytes()))
    loader = TrainLoader(load(), 18)
    for _ in range(2):  # it says so each time that it is asked, rather than end
        with pytest.raises(ValueError, match=rf"train/bee/2.jpg: .*{message}.*on_error='skip'"):
            next(loader)
    with pytest.raises(ValueError, match=rf"val/bee/1.jpg: .*{message}"):
        list(EvalLoader(load(), 9))

    loader = TrainLoader(load(on_error="skip"), 18)
    for _ in range(2):
        assert next(loader)["image"].shape == (18, 32, 32, 3)
    assert len(loader.skipped) == 1 and set(loader.skipped.values()) == {2}
    assert "train/bee/2.jpg" in next(iter(loader.skipped))
    evaluation = EvalLoader(load(on_error="skip"), 5)
    mask = np.concatenate([batch["mask"] for batch in evaluation])
    np.testing.assert_array_equal(mask, [1, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    assert sum(evaluation.skipped.values()) == 1


def test_grey_images_are_converted_where_the_config_says_so(load, image_folder):
    grey = picture(40, 40)[..., 0]
    write(
        image_folder / "val/ant/0.jpg", encode(".png", grey)
    )  # its bytes say PNG, whatever its name
    image = next(iter(EvalLoader(load(convert_to_rgb=True), 1)))["image"][0]
    pixels = image * IMAGENET_STD + IMAGENET_MEAN
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-5)


def test_a_file_that_is_gone(load, image_folder):
    dataset = load()
    (image_folder / "train/ant/0.jpg").unlink()
    with pytest.raises(ValueError, match=r"train/ant/0.jpg: cannot be read \(No such file"):
        next(TrainLoader(dataset, 18))


def test_nothing_but_bad_files(load, image_folder):
    for path in image_folder.glob("train/*/*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="18 examples in a row cannot be used"):
        next(TrainLoader(load(on_error="skip"), 4))


def test_folders_that_are_not_as_they_should_be(load, image_folder, caplog):
    (image_folder / "train/dog").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/dog has no images .*on_error='skip'"):
        load()
    assert load(on_error="skip").num_classes == 4
    assert "train/dog has no images" in caplog.text
    (image_folder / "val/eel").mkdir()
    with pytest.raises(ValueError, match=r"val/eel is a class that .*train does not have"):
        load(on_error="skip")
    shutil.rmtree(image_folder / "val")
    with pytest.raises(FileNotFoundError, match=r"val not found: set config\.data\.data_dir"):
        load()
    with pytest.raises(FileNotFoundError, match="data_dir is empty"):
        load(data_dir="")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(on_error="ignore"), "'ignore', but must be one of"),
        (dict(image_size=(0, 3)), r"must be \(height, width\)"),
        (dict(base_size=512), "base_size is 512, but image_folder does not have this field"),
        (dict(eval_image_size=(3, 3)), "leave it unset. .It has convert_to_rgb, crop_fraction"),
    ],
)
def test_bad_config(load, fields, message):
    with pytest.raises(ValueError, match=message):
        load(**fields)


def test_imagenet_samples(data_config, imagenet_samples):
    dataset = load_dataset(
        data_config(
            name="image_folder", data_dir=imagenet_samples, image_size=(224, 224), augment=True
        )
    )
    assert (dataset.num_classes, dataset.num_train) == (1000, 1000)
    batch = next(TrainLoader(dataset, 64))
    assert batch["image"].shape == (64, 224, 224, 3)
    assert abs(batch["image"].mean()) < 0.5 and 0.7 < batch["image"].std() < 1.4


def test_tilde_is_the_home_directory(load, image_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert load(data_dir=f"~/{image_folder.name}").num_train == 18


def test_hidden_folders_are_no_classes(load, image_folder, caplog):
    for folder in ("train/.ipynb_checkpoints", "val/.ipynb_checkpoints", "train/__MACOSX/ant"):
        write(image_folder / folder / "0.jpg", b"")
    write(image_folder / "train/ant/.cache/0.jpg", b"")
    write(image_folder / "train/ant/._0.jpg", b"")
    dataset = load()
    assert dataset.class_names == ("ant", "bee", "cow") and dataset.num_train == 18
    assert "image_folder (train): left out 4 file(s): 4 hidden." in caplog.text
    assert "image_folder (val): left out 1 file(s): 1 hidden." in caplog.text


def test_images_in_subfolders_of_a_class(load, image_folder):
    write(image_folder / "train/bee/day1/9.jfif", encode(".jpg", picture(40, 40)))
    (image_folder / "train/bee/day1/loop").symlink_to(image_folder / "train/bee")
    reader = load().train.reader
    labels = {pathlib.Path(p).name: label for p, label in zip(reader.images, reader.labels)}
    assert len(reader) == 19 and labels["9.jfif"] == 1
    assert next(TrainLoader(load(), 19))["image"].shape == (19, 32, 32, 3)


def test_files_that_are_not_read_are_counted(load, image_folder, caplog):
    for name in ("ant/1.bmp", "ant/2.BMP", "bee/3.webp", "cow/4.tiff", "cow/README", "loose.jpg"):
        write(image_folder / "train" / name, b"")
    assert load().num_train == 18
    expected = "2 .bmp, 1 .tiff, 1 .webp, 1 outside the class folders, 1 without a suffix."
    assert f"image_folder (train): left out 6 file(s): {expected}" in caplog.text
    write(image_folder / "train/dog/1.webp", b"")
    with pytest.raises(FileNotFoundError, match=r"dog has no images .*; it holds 1 \.webp: add"):
        load()


def test_evaluation_on_another_folder(load, image_folder, tmp_path_factory):
    assert load(eval_split="train").num_eval == 18
    other = tmp_path_factory.mktemp("other")
    write(other / "cow" / "9.jpg", encode(".jpg", picture(40, 40)))
    dataset = load(eval_split=str(other))
    np.testing.assert_array_equal(next(iter(EvalLoader(dataset, 1)))["label"], [2])  # cow, of train
    write(other / "eel" / "9.jpg", b"")
    with pytest.raises(ValueError, match=r"eel is a class that .*train does not have"):
        load(eval_split=str(other))
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        load(eval_split="nowhere")


def test_unicode_forms_of_a_class(load, image_folder):
    (image_folder / "train/ant").rename(image_folder / "train/caf\u00e9")
    (image_folder / "val/ant").rename(image_folder / "val/cafe\u0301")
    dataset = load()
    assert dataset.class_names == ("bee", "caf\u00e9", "cow") and dataset.num_eval == 9
    write(image_folder / "train/cafe\u0301/0.jpg", b"")
    with pytest.raises(ValueError, match=r"look the same.*'cafe\\u0301' and 'caf\\xe9'"):
        load()


NAMES = st.sampled_from(["a", "b", ".h", "c.d", "__MACOSX"])
SUFFIXES = st.sampled_from([".jpg", ".PNG", ".jfif", ".bmp", ".webp", ""])
FILES = st.tuples(st.lists(NAMES, max_size=3), NAMES, SUFFIXES)


@settings(max_examples=60, deadline=None)
@given(st.sets(FILES.map(lambda f: "/".join([*f[0], f"{f[1]}_{f[2]}"]))))
def test_every_file_of_a_tree_is_taken_or_counted(names):
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        for name in {"a/x.jpg", "b/x.jpg", *names}:
            write(folder / "train" / name, b"")
        write(folder / "val/a/x.jpg", b"")
        files = [p.relative_to(folder / "train") for p in folder.glob("train/**/*") if p.is_file()]
        taken = {}
        for path in files:
            shown = not any(part[0] == "." or part == "__MACOSX" for part in path.parts)
            image = path.suffix.lower() in (".jpg", ".png", ".jfif")
            if shown and image and len(path.parts) > 1:
                taken[str(folder / "train" / path)] = path.parts[0]
        config = default.get_config().data
        config.update(name="image_folder", data_dir=root, image_size=(8, 8), on_error="skip")
        with unittest.mock.patch.object(logging, "warning") as warning:
            dataset = load_dataset(config)
        reader = dataset.train.reader
        classes = [dataset.class_names[label] for label in reader.labels]
        assert dict(zip(reader.images, classes, strict=True)) == taken
        counts = [c.args[2] for c in warning.call_args_list if c.args[0].startswith("%s: left out")]
        assert sum(map(int, counts)) == len(files) - len(taken)
