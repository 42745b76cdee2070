"""Sets that TFDS has prepared: CIFAR-10, ImageNet, Cityscapes; wrong formats; preparing."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mdeq_jax.data import EvalLoader, TrainLoader, load_dataset, prepare
from mdeq_jax.data.sets import cityscapes
from tests.helpers.synthetic_images import encode, picture

IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
}
LABEL_MAP = IMAGE | {"image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "1"]}}}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def class_label(num_classes):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(num_classes)},
    }


def as_feature(value):
    if isinstance(value, bytes):
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[value]))


def write_tfds(root, name, features, splits, label_names=None):
    """Writes a data set as `download_and_prepare(file_format="array_record")` does."""
    folder = root / name / "5.1.0"
    folder.mkdir(parents=True)
    base = name.split("/")[0]
    info = {"name": base, "version": "5.1.0", "fileFormat": "array_record", "splits": []}
    for split, examples in splits.items():
        path = folder / f"{base}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for example in examples:
            fields = {key: as_feature(value) for key, value in example.items()}
            proto = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=fields))
            writer.write(proto.SerializeToString())
        writer.close()
        info["splits"].append(
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    text = {"pythonClassName": kind, "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(text))
    if label_names:
        (folder / "label.labels.txt").write_text("\n".join(label_names))
    return folder


@pytest.fixture
def cifar_like(tmp_path):
    def examples(count, label=lambda i: i % 10):
        return [
            {"image": encode(".png", picture(32, 32, i)), "label": label(i), "id": b"%d" % i}
            for i in range(count)
        ]

    def make(**splits):
        names = "airplane automobile bird cat deer dog frog horse ship truck".split()
        features = {"image": IMAGE, "label": class_label(10), "id": TEXT}
        splits = {"train": examples(20), "test": examples(10)} | splits
        return write_tfds(tmp_path, "cifar10", features, splits, names)

    make.examples = examples
    make.data_dir = str(tmp_path)
    return make


@pytest.fixture
def load(data_config):
    def load(name, data_dir, **fields):
        return load_dataset(data_config(name=name, data_dir=str(data_dir), **fields))

    return load


def test_cifar10(load, cifar_like):
    cifar_like()
    dataset = load("cifar10", cifar_like.data_dir, image_size=(32, 32))
    assert (dataset.num_train, dataset.num_eval, dataset.num_classes) == (20, 10, 10)
    assert dataset.class_names[1] == "automobile"
    batch = next(iter(EvalLoader(dataset, 10)))
    np.testing.assert_array_equal(batch["label"], np.arange(10))
    pixels = batch["image"][3] * dataset.std + dataset.mean
    np.testing.assert_allclose(pixels, picture(32, 32, 3) / 255, atol=1e-5)


def test_cifar10_label_out_of_range(load, cifar_like):
    cifar_like(train=cifar_like.examples(5, label=lambda i: 7 + i))
    with pytest.raises(ValueError, match=r"cifar10 train: the label of example 3 is 10.*\[0, 10\)"):
        load("cifar10", cifar_like.data_dir, image_size=(32, 32))


def test_cifar10_damaged_image(load, cifar_like, caplog):
    examples = cifar_like.examples(6)
    examples[4]["image"] = examples[4]["image"][:100]
    cifar_like(train=examples)
    with pytest.raises(ValueError, match=r"cifar10 train\[4\] \(4\): truncated PNG"):
        load("cifar10", cifar_like.data_dir, image_size=(32, 32))
    dataset = load("cifar10", cifar_like.data_dir, image_size=(32, 32), on_error="skip")
    assert dataset.num_train == 5
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 2, 3, 5])
    assert "cifar10 (train): skipped 1 examples" in caplog.text


def test_cifar10_image_size(load, cifar_like):
    with pytest.raises(ValueError, match=r"image_size is \(8, 8\), but the images of cifar10"):
        load("cifar10", cifar_like.data_dir)


def test_missing_and_unfinished_sets(load, tmp_path):
    fields = dict(image_size=(32, 32))
    command = r"python -m mdeq_jax\.data\.prepare --dataset=cifar10 --data_dir="
    with pytest.raises(FileNotFoundError, match=f"data_dir is empty.*{command}"):
        load("cifar10", "", **fields)
    with pytest.raises(FileNotFoundError, match=f"cifar10 does not exist.*{command}"):
        load("cifar10", tmp_path, **fields)
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"holds no finished version.*{command}"):
        load("cifar10", tmp_path, **fields)


def test_missing_shards_and_splits(load, cifar_like):
    folder = cifar_like()
    (folder / "cifar10-test.array_record-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar10-test.array_record.* is missing"):
        load("cifar10", cifar_like.data_dir, image_size=(32, 32))
    shutil.rmtree(folder)
    cifar_like(test=[])
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"].pop()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="has no split 'test', only"):
        load("cifar10", cifar_like.data_dir, image_size=(32, 32))


def test_tfrecord_is_recognised(load, cifar_like):
    path = cifar_like() / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    message = r"prepared as tfrecord.*prepare --dataset=cifar10 --data_dir=\S+ --convert_to=NEW_DIR"
    with pytest.raises(ValueError, match=message):
        load("cifar10", cifar_like.data_dir, image_size=(32, 32))


def test_imagenet2012(load, tmp_path):
    def examples(count):
        pictures = [picture(60, 80, i) for i in range(count)]
        pictures[1] = pictures[1][..., 0]  # ImageNet has grey images
        return [
            {"image": encode(".jpg", p), "label": i, "file_name": b"n%d.JPEG" % i}
            for i, p in enumerate(pictures)
        ]

    features = {"image": IMAGE, "label": class_label(1000), "file_name": TEXT}
    names = [f"n{i:08d}" for i in range(1000)]
    splits = {"train": examples(6), "validation": examples(4)}
    splits["validation"][3]["image"] = splits["validation"][3]["image"][:-20]
    write_tfds(tmp_path, "imagenet2012", features, splits, names)
    dataset = load("imagenet2012", tmp_path, image_size=(48, 48), augment=True)
    assert (dataset.num_train, dataset.num_eval, dataset.num_classes) == (6, 4, 1000)
    assert dataset.class_names[999] == "n00000999"
    assert next(TrainLoader(dataset, 6))["image"].shape == (6, 48, 48, 3)
    batches = iter(EvalLoader(dataset, 2))
    np.testing.assert_array_equal(next(batches)["label"], [0, 1])
    with pytest.raises(ValueError, match=r"imagenet2012 validation\[3\] \(n3.JPEG\): truncated"):
        next(batches)


def test_cityscapes_from_tfds(load, tmp_path):
    labels = np.random.default_rng(0).integers(-1, 34, (32, 64))
    example = {
        "image_id": b"ulm_000000_000019",
        "image_left": encode(".png", picture(32, 64)),
        "segmentation_label": encode(".png", labels.astype(np.uint8)),
    }
    features = {"image_id": TEXT, "image_left": IMAGE, "segmentation_label": LABEL_MAP}
    splits = {"train": [example] * 3, "validation": [example] * 2}
    write_tfds(tmp_path, cityscapes.TFDS_NAME, features, splits)
    dataset = load("cityscapes", tmp_path, image_size=(16, 16))
    assert (dataset.num_train, dataset.num_eval, dataset.num_classes) == (3, 2, 19)
    assert next(TrainLoader(dataset, 2))["label"].shape == (2, 16, 16)
    batch = next(iter(EvalLoader(dataset, 2)))
    expected = np.vectorize(cityscapes.TRAIN_IDS.get)(labels)
    np.testing.assert_array_equal(batch["label"][1], expected)


def test_real_cifar10(load, cifar_dir):
    dataset = load("cifar10", cifar_dir, image_size=(32, 32), augment=True)
    assert (dataset.num_train, dataset.num_eval) == (50000, 10000)
    assert (np.bincount(dataset.eval.labels) == 1000).all()
    np.testing.assert_allclose(
        dataset.train.images.mean(axis=(0, 1, 2)) / 255, dataset.mean, atol=2e-3
    )
    assert next(TrainLoader(dataset, 128))["image"].shape == (128, 32, 32, 3)


def run_prepare(*arguments):
    command = [sys.executable, "-m", "mdeq_jax.data.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_prepare_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    done = run_prepare("--dataset=imagenet2012", f"--data_dir=~/{tmp_path.name}")
    assert done.returncode == 1
    for text in ("ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar", "image-net.org"):
        assert text in done.stderr
    assert str(tmp_path / "downloads" / "manual") in done.stderr
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "leftImg8bit_trainvaltest.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"Fetch gtFine_trainvaltest.zip from"):
        prepare.check_manual("cityscapes", manual)


def test_prepare_refuses_to_convert_what_is_not_tfrecord(cifar_like, tmp_path):
    cifar_like()
    with pytest.raises(ValueError, match="as array_record; only tfrecord can be converted"):
        prepare.convert("cifar10", cifar_like.data_dir, str(tmp_path / "new"))


def test_conversion_from_tfrecord(load, cifar_like, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="preparing needs the extra `prepare`")
    source = cifar_like()
    for split, examples in (("train", 20), ("test", 10)):
        path = source / f"cifar10-{split}.array_record-00000-of-00001"
        path.unlink()
        with tf.io.TFRecordWriter(str(path).replace("array_record", "tfrecord")) as writer:
            for example in cifar_like.examples(examples):
                fields = {key: as_feature(value) for key, value in example.items()}
                proto = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=fields))
                writer.write(proto.SerializeToString())
    info = source / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    prepare.convert("cifar10", cifar_like.data_dir, str(tmp_path / "new"))
    dataset = load("cifar10", tmp_path / "new", image_size=(32, 32))
    np.testing.assert_array_equal(dataset.train.images[7], picture(32, 32, 7))
    with pytest.raises(FileExistsError, match="already there"):
        prepare.convert("cifar10", cifar_like.data_dir, str(tmp_path / "new"))
