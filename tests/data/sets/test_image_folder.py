"""Folders of images: classes, transforms, and everything that can be wrong with them."""

import shutil

import cv2
import numpy as np
import pytest

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
        (dict(eval_split="test"), "leave it unset. .It has convert_to_rgb"),
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
