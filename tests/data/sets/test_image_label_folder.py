"""A user's segmentation data set: its folders, its table of classes, and what can be wrong."""

import numpy as np
import pytest

from configs import own_segmentation
from mdeq_jax.data import IGNORE_LABEL, EvalLoader, TrainLoader, load_dataset, read_class_table
from mdeq_jax.tasks.segmentation import segmenter
from tests.helpers.synthetic_images import encode, picture, write

CLASSES = "id,name,color,ignored\n3,road,#804080,false\n7,sky,#4682b4,False\n9,void,#000000,true\n"


@pytest.fixture
def load(data_config, tmp_path):
    """Loads a data set of 4 training and 2 validation images."""
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            labels = np.random.default_rng(i).choice([3, 7, 9], (36, 48)).astype(np.uint8)
            suffix = ".png" if i == 1 else ".jpg"
            write(tmp_path / split / "images" / f"{i}{suffix}", encode(suffix, picture(36, 48, i)))
            write(tmp_path / split / "labels" / f"{i}.png", encode(".png", labels))
    write(tmp_path / "classes.csv", CLASSES.encode())

    def load(**fields):
        fields = dict(image_size=(32, 32), data_dir=str(tmp_path)) | fields
        return load_dataset(data_config(name="image_label_folder", **fields))

    return load


def test_batches(load, tmp_path):
    dataset = load(augment=True)
    assert (dataset.task, dataset.class_names) == ("segmentation", ("road", "sky"))
    assert (dataset.num_train, dataset.num_eval) == (4, 2)
    assert dataset.train.transform.base_size == 48
    assert next(TrainLoader(dataset, 4))["label"].shape == (4, 32, 32)
    raw = np.random.default_rng(1).choice([3, 7, 9], (36, 48))
    expected = np.select([raw == 3, raw == 7], [0, 1], IGNORE_LABEL)
    np.testing.assert_array_equal(list(EvalLoader(dataset, 1))[1]["label"][0], expected)
    for split in ("train", str(tmp_path / "train")):
        assert load(eval_split=split).num_eval == 4


def test_class_table(load, data_config, tmp_path):
    config = data_config(name="image_label_folder", data_dir=str(tmp_path))
    expected = [(3, "road", (128, 64, 128), False), (7, "sky", (70, 130, 180), False)]
    expected.append((9, "void", (0, 0, 0), True))
    spreadsheet = CLASSES.replace(",", ";").replace("color", "Colour").encode("utf-8-sig")
    for content in (CLASSES.encode(), spreadsheet, CLASSES.replace("\n", "\r\n").encode()):
        write(tmp_path / "classes.csv", content)
        table = read_class_table(config)
        assert [(c.id, c.name, c.color, c.ignored) for c in table] == expected


def test_pictures_have_the_ids_and_colors_of_the_table(load, tmp_path):
    config = own_segmentation.get_config()
    config.data.data_dir = str(tmp_path)
    classes = segmenter.class_table(config)
    assert [(c.id, c.color) for c in classes] == [(3, (128, 64, 128)), (7, (70, 130, 180))]
    config.model.num_classes = 3
    with pytest.raises(ValueError, match=r"model.num_classes=3, but image_label_folder has 2"):
        segmenter.class_table(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name,ignored\n", "the column color is missing: its first line must be id,name,color"),
        (CLASSES + "256,x,#000000,", "line 5: the id '256' must be a whole number from 0 to 255"),
        (CLASSES + "x,x,#000000,", "line 5: the id 'x' must be"),
        (CLASSES + "3,x,#000000,", "line 5: the id 3 occurs twice"),
        (CLASSES + "1,road,#000000,", "line 5: the name 'road' occurs twice"),
        (CLASSES + "1,,#000000,", "line 5: the class 1 has no name"),
        (CLASSES + "1,x,black,", "line 5: the color 'black' must be #rrggbb"),
        (CLASSES + "1,x,#000000,perhaps", "line 5: ignored is 'perhaps', but must be true or"),
        (CLASSES + "1,x", "line 5: the color '' must be"),
        ("id,name,color,ignored\n1,x,#000000,yes\n", "must not be ignored"),
        ("", "is missing"),
    ],
)
def test_bad_tables(load, tmp_path, content, message):
    write(tmp_path / "classes.csv", content.encode())
    with pytest.raises(ValueError, match=rf"classes.csv.*{message}"):
        load()


def test_folders_that_are_not_as_they_should_be(load, tmp_path, caplog):
    write(tmp_path / "val/labels/1.png", encode(".png", np.full((36, 48), 5, np.uint8)))
    with pytest.raises(ValueError, match=r"labels/1.png: it holds the label 5, but only \[3, 7, 9"):
        list(EvalLoader(load(), 1))
    for name in ("images/8.webp", "images/._0.jpg", "labels/9.png"):
        write(tmp_path / "train" / name, b"")
    assert load().num_train == 4
    expected = "1 .webp, 1 hidden, 1 label maps without an image."
    assert f"image_label_folder (train): left out 3 file(s): {expected}" in caplog.text
    write(tmp_path / "train/images/0.png", encode(".png", picture(36, 48)))
    with pytest.raises(ValueError, match=r"0.jpg and .*0.png would have the same label map"):
        load()
    (tmp_path / "train/images/0.png").unlink()
    (tmp_path / "train/labels/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/2.jpg has no label map"):
        load()
    assert load(on_error="skip").num_train == 3
    with pytest.raises(FileNotFoundError, match=r"other/images, .*other/labels not found"):
        load(eval_split="other")
    (tmp_path / "classes.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes.csv not found: write the table"):
        load()
