"""Vocabularies: order, encoding, decoding, and the file in the work directory."""

import numpy as np
import pytest

from mdeq_jax.data import load_vocabulary
from mdeq_jax.data.text.vocabulary import build_vocabulary, check_tokens

TEXT = " \n = Title = \n \n the cat saw the dog , the <unk> ran . \n"


def test_words_are_in_the_order_of_transformer_xl():
    vocabulary = build_vocabulary(TEXT, "word")
    # By count, then by first appearance, after "<eos>".
    assert vocabulary.tokens == tuple("<eos> the = Title cat saw dog , <unk> ran .".split())
    assert vocabulary.size == 11 and vocabulary.unit == "word"


def test_words_there_and_back():
    vocabulary = build_vocabulary(TEXT, "word")
    tokens = vocabulary.encode("the zebra ran\n\nthe dog")
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [1, 8, 9, 0, 0, 1, 6, 0]  # every line ends, an empty one too
    assert vocabulary.decode(tokens) == "the <unk> ran\n\nthe dog\n"
    assert vocabulary.encode("the dog", ends_line=False).tolist() == [1, 6]
    assert vocabulary.encode("").tolist() == []


def test_an_unknown_word_is_added_only_if_it_is_missing():
    assert build_vocabulary("b a b\n", "word").tokens == ("<eos>", "b", "a", "<unk>")


def test_many_lines_are_encoded_as_few(monkeypatch):
    from mdeq_jax.data.text import vocabulary as module

    whole = build_vocabulary(TEXT, "word")
    expected = whole.encode(TEXT)
    monkeypatch.setattr(module, "_LINES_AT_A_TIME", 1)
    np.testing.assert_array_equal(whole.encode(TEXT), expected)


@pytest.mark.parametrize("text", ["hällo wörld\n→ ends", "\U0001f600 smile\r\n"])
def test_characters_there_and_back(text):
    vocabulary = build_vocabulary(text, "character")
    tokens = vocabulary.encode(text)
    assert len(tokens) == len(text) and vocabulary.decode(tokens) == text
    assert vocabulary.size == len(set(text)) + 1
    unknown = vocabulary.encode("\N{SNOWMAN}")
    assert unknown.tolist() == [vocabulary.unknown]
    assert vocabulary.decode(unknown) == "\N{REPLACEMENT CHARACTER}"


def test_bytes_there_and_back():
    text = "naïve →"
    vocabulary = build_vocabulary(text.encode().decode("latin-1"), "character", of_bytes=True)
    tokens = vocabulary.encode(text)
    assert len(tokens) == len(text.encode()) and vocabulary.decode(tokens) == text


@pytest.mark.parametrize("unit", ["word", "character"])
def test_the_file_of_a_work_directory(tmp_path, unit):
    vocabulary = build_vocabulary(TEXT, unit)
    vocabulary.check(tmp_path)  # nothing there yet
    vocabulary.save(tmp_path)
    assert load_vocabulary(tmp_path) == vocabulary
    vocabulary.check(tmp_path)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        (TEXT.replace("cat", "cow"), "word", "its token 4 is 'cat', here 'cow'"),
        (TEXT + "more\n", "word", "it has 11 tokens, this one 12"),
        (TEXT, "character", "its units are words, these are characters"),
    ],
)
def test_the_vocabulary_of_another_run_is_refused(tmp_path, text, unit, message):
    build_vocabulary(TEXT, "word").save(tmp_path)
    with pytest.raises(ValueError, match=message):
        build_vocabulary(text, unit).check(tmp_path)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabulary.json is missing"):
        load_vocabulary(tmp_path)
    for text in ("not json", "[]", '{"unit": "page", "tokens": ["a"], "of_bytes": false}'):
        (tmp_path / "vocabulary.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            load_vocabulary(tmp_path)


def test_bad_input():
    with pytest.raises(ValueError, match=r"config.data.unit is 'page'"):
        build_vocabulary(TEXT, "page")
    with pytest.raises(ValueError, match=r"token 1 is 7, but tokens must lie in \[0, 7\)"):
        check_tokens(np.array([3, 7, -1]), 7, "here")
    with pytest.raises(ValueError, match="token 0 is -1"):
        build_vocabulary("ab", "character").decode([-1])
