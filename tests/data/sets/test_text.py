"""Text data sets: layouts, splits, vocabularies, hashes and bad files."""

import hashlib
import sys

import numpy as np
import pytest

from mdeq_jax.configs import default
from mdeq_jax.data import load_dataset
from tests.data.sets.test_tfds import write_tfds
from tests.helpers.synthetic_images import SHARED_DATA

LINES = " \n = Cats = \n \n the cat saw the dog . \n the dog ran . \n"


def load(name, data_dir="", **fields):
    config = default.get_config().data
    config.update(name=name, data_dir=str(data_dir), segment_length=4, **fields)
    return load_dataset(config)


def write_wikitext(folder, splits=("train", "valid", "test")):
    for split in splits:
        (folder / f"wiki.{split}.tokens").write_text(LINES + f" the {split} . \n")
    return folder


def decoded(dataset, split="train"):
    return dataset.vocabulary.decode(getattr(dataset, split).tokens)


def test_wikitext(tmp_path):
    dataset = load("wikitext103", write_wikitext(tmp_path))
    vocabulary = dataset.vocabulary
    assert dataset.task == "language_model" and vocabulary.unit == "word"
    assert vocabulary.tokens[:3] == ("<eos>", "the", ".") and "train" in vocabulary.tokens
    assert decoded(dataset).endswith("the dog ran .\nthe train .\n")
    assert decoded(dataset, "eval").endswith("the <unk> .\n")  # "valid" is not in training
    data = (tmp_path / "wiki.valid.tokens").read_bytes()
    assert hashlib.sha256(data).hexdigest() in dataset.notes[1]


def test_wikitext_without_its_training_tokens(tmp_path):
    write_wikitext(tmp_path, ("valid", "test"))
    with pytest.raises(FileNotFoundError, match=r"wiki.train.tokens not found.*train_split='valid"):
        load("wikitext103", tmp_path)
    dataset = load("wikitext103", tmp_path, train_split="valid", eval_split="test")
    assert "valid" in decoded(dataset) and "train" not in dataset.vocabulary.tokens
    with pytest.raises(ValueError, match="train_split is 'dev'"):
        load("wikitext103", tmp_path, train_split="dev")
    with pytest.raises(ValueError, match="eval_split is 'dev'"):
        load("wikitext103", tmp_path, train_split="valid", eval_split="dev")


def test_real_wikitext():
    folder = SHARED_DATA / "wikitext-103"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    dataset = load("wikitext103", folder, train_split="valid", eval_split="test")
    assert (dataset.num_train, dataset.num_eval) == (217_646, 245_569)


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_one_file_is_cut_in_twentieths(tmp_path, name):
    data = bytes(range(97, 117)) * 5 + "é".encode()
    (tmp_path / name).write_bytes(data)
    dataset = load(name, tmp_path)
    assert (dataset.num_train, dataset.num_eval) == (90, 5)
    assert len(load(name, tmp_path / name, eval_split="test").eval) == 7
    assert decoded(dataset) == data[:90].decode()
    assert decoded(dataset, "eval") == data[90:95].decode()


def test_three_files_of_bytes(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} →\n")
    dataset = load("enwik8", tmp_path, eval_split="test")
    assert decoded(dataset) == "train →\n" and dataset.num_train == len("train →\n".encode())
    assert decoded(dataset, "eval").startswith("t\N{REPLACEMENT CHARACTER}")  # "e" is not there
    with pytest.raises(FileNotFoundError, match=r"text8 not found.*train.txt, valid.txt"):
        load("text8", tmp_path / "elsewhere")


def test_a_text_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} ends here\n" for i in range(10, 20)))
    dataset = load("text_file", path)
    assert dataset.vocabulary.unit == "character"
    assert (dataset.num_train, dataset.num_eval) == (162, 18)
    assert decoded(dataset) + decoded(dataset, "eval") == path.read_text().replace(
        "19", "1\N{REPLACEMENT CHARACTER}"
    )
    words = load("text_file", path, unit="word")
    assert decoded(words, "eval") == "line <unk> ends here\n"
    assert words.num_train == 9 * 5


def test_the_language_reference_of_python():
    dataset = load("pydoc")
    assert 200_000 < dataset.num_train + dataset.num_eval < 2_000_000
    assert abs(dataset.num_eval - dataset.num_train / 9) < 1
    assert dataset.vocabulary.size < 300 and dataset.vocabulary.unit == "character"
    start = 'The "assert" statement\n'
    np.testing.assert_array_equal(
        dataset.train.tokens[: len(start)], dataset.vocabulary.encode(start)
    )
    if sys.version_info[:2] == (3, 11):
        assert dataset.num_train + dataset.num_eval == pytest.approx(465_000, rel=0.02)


def test_a_python_without_its_language_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match=r"does not have pydoc_data.topics.*text_file"):
        load("pydoc")


def test_a_set_of_tfds(tmp_path):
    feature = {
        "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
        "text": {},
    }
    examples = [{"text": line.encode()} for line in ("the cat", "the dög")]
    write_tfds(tmp_path, "stories", {"text": feature}, {"train": examples, "test": examples[:1]})
    dataset = load("tfds_text", tmp_path, tfds_name="stories")
    assert decoded(dataset) == "the cat\nthe dög\n" and decoded(dataset, "eval") == "the cat\n"
    with pytest.raises(ValueError, match="tfds_feature is 'body'"):
        load("tfds_text", tmp_path, tfds_name="stories", tfds_feature="body")
    with pytest.raises(ValueError, match="tfds_name is unset"):
        load("tfds_text", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"no line break at all", "has no line break in 20 characters"),
        (b"fine\nnot \xff fine\n", r"is not UTF-8: byte 9 \(line 2\) is 0xff"),
        (b"\n", "needs at least 2"),
    ],
)
def test_bad_files(tmp_path, data, message):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load("text_file", path)


def test_settings_of_other_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.data.crop_fraction is 0.5, but pydoc"):
        load("pydoc", crop_fraction=0.5)
    with pytest.raises(ValueError, match=r"config.data.segment_length is 4, but digits"):
        load("digits")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load("text_file", tmp_path)
    with pytest.raises(ValueError, match="unit is 'word', but text8 is read as characters"):
        load("text8", tmp_path, unit="word")
