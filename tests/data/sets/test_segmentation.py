"""CamVid and Cityscapes: label maps, their transforms, files that do not fit together."""

import json
import pathlib

import numpy as np
import pytest

from mdeq_jax.data import IGNORE_LABEL, EvalLoader, TrainLoader, load_dataset
from mdeq_jax.data.sets import camvid, cityscapes
from mdeq_jax.data.vision.disk_split import Record
from mdeq_jax.data.vision.transforms import SegmentationTransform, label_table
from tests.helpers.synthetic_images import SHARED_DATA, encode, picture, write

TABLE = label_table({i: i for i in range(11)})


@pytest.fixture
def load(data_config, camvid_like):
    def load(**fields):
        fields = dict(image_size=(32, 32), data_dir=str(camvid_like)) | fields
        return load_dataset(data_config(name="camvid", **fields))

    return load


def transform(**fields):
    fields = (
        dict(
            size=(32, 40),
            train=True,
            augment=True,
            base_size=48,
            scale_factor=16,
            table=TABLE,
            convert_to_rgb=False,
        )
        | fields
    )
    return SegmentationTransform(**fields)


def coded_record(height=36, width=48):
    """The colour of each pixel is 20 times its label, in large areas."""
    label = np.zeros((height, width), np.uint8)
    label[: height // 2] += 3
    label[:, : width // 3] += 6
    image = np.repeat(label[..., None] * 20, 3, axis=-1)
    return Record("a.png", encode(".png", image), encode(".png", label), "a_label.png")


def test_image_and_label_are_scaled_cropped_and_mirrored_together():
    sizes, mirrored = set(), 0
    for seed in range(200):
        image, label = transform()(coded_record(), np.random.default_rng(seed))
        assert image.shape == (32, 40, 3) and label.shape == (32, 40) and label.dtype == np.int32
        assert set(np.unique(label)) <= {0, 3, 6, 9, IGNORE_LABEL}
        inside = label != IGNORE_LABEL
        close = np.abs(image[..., 0].astype(int) - 20 * label) <= 6  # not at edges: bilinear
        assert close[inside].mean() > 0.85
        assert not image[~inside].any()  # padded with black
        sizes.add(int(inside.sum()))
        columns = np.flatnonzero(inside.any(axis=0))
        mirrored += columns[0] > 0  # padding, which is added at the right, is now at the left
    assert len(sizes) > 3
    assert 10 < mirrored < 90


def test_scales_are_those_of_the_originals():
    """Padding shows the scaled size: long side int(48 * (0.5 + k/10) + 0.5), k in 0..16."""
    seen = set()
    for seed in range(400):
        part = transform(size=(96, 128))(coded_record(), np.random.default_rng(seed))[1]
        seen.add(int((part != IGNORE_LABEL).any(axis=0).sum()))
    expected = {min(int(48 * (0.5 + k / 10) + 0.5), 128) for k in range(17)}
    assert seen == expected and max(seen) == 101


def test_without_augmentation_the_middle():
    record = coded_record()
    image, label = transform(augment=False)(record, np.random.default_rng(0))
    whole_image, whole_label = transform(size=None, train=False)(record, None)
    assert whole_label.shape == (36, 48)
    np.testing.assert_array_equal(label, whole_label[2:34, 4:44])
    np.testing.assert_array_equal(image, whole_image[2:34, 4:44])


def test_evaluation_pads_whole_images():
    image, label = transform(size=(64, 64), train=False)(coded_record(), None)
    assert image.shape == (64, 64, 3)
    np.testing.assert_array_equal(image[36:], np.broadcast_to(image[35:36], (28, 64, 3)))
    np.testing.assert_array_equal(image[:, 48:], np.broadcast_to(image[:, 47:48], (64, 16, 3)))
    assert (label[36:] == IGNORE_LABEL).all() and (label[:36, :48] != IGNORE_LABEL).all()
    with pytest.raises(ValueError, match=r"a.png: its size is \(36, 48\), larger than"):
        transform(size=(32, 64), train=False)(coded_record(), None)


def test_batches(load):
    dataset = load(augment=True)
    assert (dataset.task, dataset.num_classes) == ("segmentation", 11)
    assert (dataset.num_train, dataset.num_eval) == (6, 3)
    assert load(eval_split="test").num_eval == 2 and load(eval_split="train").num_eval == 6
    batch = next(TrainLoader(dataset, 4))
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (4, 32, 32) and batch["label"].dtype == np.int32
    batches = list(EvalLoader(dataset, 2))
    assert [b["label"].shape for b in batches] == [(2, 36, 48)] * 2
    np.testing.assert_array_equal(batches[1]["mask"], [1, 0])


def test_void_is_ignored(load, camvid_like):
    labels = np.full((36, 48), camvid.VOID, np.uint8)
    labels[0] = 10
    write(camvid_like / "valannot/0.png", encode(".png", labels))
    label = next(iter(EvalLoader(load(), 1)))["label"][0]
    assert (label[0] == 10).all() and (label[1:] == IGNORE_LABEL).all()


def spoil_label(value):
    return lambda root: write(
        root / "valannot/1.png", encode(".png", np.full((36, 48), value, np.uint8))
    )


BAD = {
    "label out of range": (spoil_label(12), r"valannot/1.png: it holds the label 12, but only \[0"),
    "size": (
        lambda root: write(root / "val/1.jpg", encode(".jpg", picture(30, 48))),
        r"valannot/1.png: its size is \(36, 48\), but that of .*val/1.jpg is \(30, 48\)",
    ),
    "truncated label map": (
        lambda root: write(root / "valannot/1.png", encode(".png", picture(36, 48))[:50]),
        r"valannot/1.png: truncated PNG",
    ),
    "colour label map": (
        lambda root: write(root / "valannot/1.png", encode(".png", picture(36, 48))),
        r"valannot/1.png: a label map must be an 8-bit grey PNG",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_or_skipped(load, camvid_like, kind):
    spoil, message = BAD[kind]
    spoil(camvid_like)
    with pytest.raises(ValueError, match=message):
        list(EvalLoader(load(), 3))
    loader = EvalLoader(load(on_error="skip"), 3)
    np.testing.assert_array_equal(next(iter(loader))["mask"], [1, 0, 1])
    assert len(loader.skipped) == 1


def test_image_without_its_label_map(load, camvid_like, caplog):
    (camvid_like / "trainannot/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/2.jpg has no label map .*trainannot/2.png"):
        load()
    assert load(on_error="skip").num_train == 5
    assert "skipped 1 images without a label map" in caplog.text


def test_files_that_are_not_read_are_counted(load, camvid_like, caplog):
    for name in ("train/._0.jpg", "train/9.webp", "train/more/9.jpg", "trainannot/9.png"):
        write(camvid_like / name, b"")
    assert load().num_train == 6
    expected = "1 .webp, 1 hidden, 1 in subfolders, 1 label maps without an image."
    assert f"camvid (train): left out 4 file(s): {expected}" in caplog.text


def test_whole_images_of_different_sizes(load, camvid_like):
    write(camvid_like / "val/1.jpg", encode(".jpg", picture(30, 40)))
    write(camvid_like / "valannot/1.png", encode(".png", np.zeros((30, 40), np.uint8)))
    with pytest.raises(ValueError, match=r"val/0.jpg is \(36, 48\) and .*eval_image_size"):
        list(EvalLoader(load(), 3))
    assert next(iter(EvalLoader(load(eval_image_size=(64, 64)), 3)))["image"].shape[1:3] == (64, 64)
    assert [b["image"].shape[1] for b in EvalLoader(load(), 1)] == [36, 30, 36]


def test_size_of_whole_images(load):
    assert next(iter(EvalLoader(load(eval_image_size=(None,)), 1)))["label"].shape == (1, 36, 48)
    for size in ((64,), (64, 0), (64, 64.0)):
        with pytest.raises(ValueError, match=r"eval_image_size is \(64.*must be \(height, width\)"):
            load(eval_image_size=size)


def test_bad_config(load):
    with pytest.raises(ValueError, match="eval_split is 'tset', but must be 'val' or"):
        load(eval_split="tset")
    with pytest.raises(FileNotFoundError, match=r"nowhere/train.* not found: set config"):
        load(data_dir="nowhere")


def test_cityscapes_label_map():
    ids = cityscapes.TRAIN_IDS
    assert sorted(ids) == list(range(-1, 34)) and len(cityscapes.CLASSES) == 19
    assert (ids[7], ids[26], ids[33], ids[0], ids[-1]) == (0, 13, 18, IGNORE_LABEL, IGNORE_LABEL)
    reference = SHARED_DATA.parent / "reference" / "cityscapes.json"
    if reference.is_file():
        expected = json.loads(reference.read_text())["label_id_to_train_id"]
        assert {str(k): v for k, v in ids.items()} == expected


def official_cityscapes(root: pathlib.Path):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            labels = np.random.default_rng(i).integers(-1, 34, (32, 64)).astype(np.uint8)
            stem = f"ulm_{i:06d}_000019"
            image = encode(".png", picture(32, 64, i))
            write(root / f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png", image)
            write(root / f"gtFine/{split}/ulm/{stem}_gtFine_labelIds.png", encode(".png", labels))
    return labels


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_cityscapes_that_is_not_there(data_config, folder):
    """Both layouts are named."""
    message = r"(?s)cityscapes/semantic_segmentation.*folder that holds leftImg8bit and gtFine"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset(data_config(name="cityscapes", data_dir=folder, image_size=(32, 32)))


def test_cityscapes_from_the_official_folders(data_config, tmp_path, caplog):
    raw = official_cityscapes(tmp_path)
    config = data_config(
        name="cityscapes", data_dir=str(tmp_path), image_size=(32, 32), base_size=64, augment=True
    )
    dataset = load_dataset(config)
    assert (dataset.num_classes, dataset.num_train, dataset.num_eval) == (19, 3, 2)
    config.eval_split = "train"
    assert load_dataset(config).num_eval == 3
    config.eval_split = "val"
    batch = next(TrainLoader(dataset, 3))
    assert batch["label"].shape == (3, 32, 32)
    del batch
    raw = np.random.default_rng(1).integers(-1, 34, (32, 64))
    expected = np.vectorize(cityscapes.TRAIN_IDS.get)(raw)
    np.testing.assert_array_equal(list(EvalLoader(dataset, 1))[1]["label"][0], expected)

    write(tmp_path / "leftImg8bit/train/.cache/x_leftImg8bit.png", b"")
    write(tmp_path / "leftImg8bit/train/ulm/._x_leftImg8bit.png", b"")
    assert load_dataset(config).num_train == 3 and "left out 2 file(s): 2 hidden" in caplog.text
    labels = tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png"
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="has no label map"):
        load_dataset(config)


def test_train_ids_under_the_name_of_label_ids_are_refused(data_config, tmp_path):
    official_cityscapes(tmp_path)
    path = tmp_path / "gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png"
    labels = np.random.default_rng(0).integers(0, 19, (32, 64)).astype(np.uint8)
    labels[:4] = 255
    write(path, encode(".png", labels))
    config = data_config(
        name="cityscapes", data_dir=str(tmp_path), image_size=(32, 32), base_size=64
    )
    with pytest.raises(ValueError, match=r"000001_000019_gtFine_labelIds.png: .* like train ids"):
        list(EvalLoader(load_dataset(config), 1))
    labels[0, 0] = 26  # a car, on which 255 is a licence plate
    write(path, encode(".png", labels))
    assert len(list(EvalLoader(load_dataset(config), 1))) == 2


def test_train_ids_without_ignored_pixels_are_refused_by_the_split(data_config, tmp_path):
    """A single map without a class over 18 may hold label ids; eight of them do not."""
    official_cityscapes(tmp_path)
    config = data_config(
        name="cityscapes", data_dir=str(tmp_path), image_size=(32, 32), base_size=64
    )
    labels = np.random.default_rng(0).integers(0, 19, (8, 8)).astype(np.uint8)
    train = tmp_path / "gtFine/train/ulm"
    for i in range(cityscapes.CHECKED_MAPS):
        stem = f"ulm_{i:06d}_000019"
        write(tmp_path / f"leftImg8bit/train/ulm/{stem}_leftImg8bit.png", b"")
        write(train / f"{stem}_gtFine_labelIds.png", encode(".png", labels))
    with pytest.raises(ValueError, match=r"7 more label maps of 'train' .* look like train ids"):
        load_dataset(config)
    labels[0, 0] = 23
    write(train / "ulm_000007_000019_gtFine_labelIds.png", encode(".png", labels))
    assert load_dataset(config).num_train == cityscapes.CHECKED_MAPS


def test_real_camvid(data_config, camvid_dir):
    config = data_config(
        name="camvid",
        data_dir=camvid_dir,
        image_size=(352, 480),
        augment=True,
        eval_image_size=(384, 480),
    )
    dataset = load_dataset(config)
    assert (dataset.num_train, dataset.num_eval) == (367, 101)
    batch = next(TrainLoader(dataset, 4))
    assert set(np.unique(batch["label"])) <= {*range(11), IGNORE_LABEL}
    assert next(iter(EvalLoader(dataset, 2)))["image"].shape == (2, 384, 480, 3)
