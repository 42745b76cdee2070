"""Reads text, and makes a data set of it."""

import dataclasses
import hashlib
from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset
from mdeq_jax.data.text.stream import TokenSplit
from mdeq_jax.data.text.vocabulary import build_vocabulary

DEFAULT_SEGMENT_LENGTH = 64
FIELDS = ("unit", "segment_length", "eval_segment_length", "eval_stride")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text and where it is from.

    Attributes:
        content: the characters; each stands for a byte if the data set is one of bytes.
        source: name of the file, or of the part of it.
        sha256: of the bytes that were read, in hexadecimal.
    """

    content: str
    source: str
    sha256: str

    def cut(self, start: int, stop: int, part: str) -> "Text":
        """Returns the characters from `start` to `stop`."""
        return Text(self.content[start:stop], f"{self.source} ({part})", self.sha256)


def read_text(path: Path, *, of_bytes: bool = False) -> Text:
    """Returns the text of a UTF-8 file.

    Args:
        path: of the file.
        of_bytes: return each byte as the character of its number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: correct config.data.data_dir.")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path} is empty: a language model needs text to learn from.")
    if of_bytes:
        content = data.decode("latin-1")
    else:
        content = decode_utf8(data, str(path))
    return Text(content, str(path), hashlib.sha256(data).hexdigest())


def decode_utf8(data: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes, without a byte-order mark.

    Raises:
        ValueError: names the position of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where} is not UTF-8: byte {error.start:,} (line {line:,}) is "
            f"0x{data[error.start]:02x}, {error.reason}. Convert the file, e.g. with "
            "iconv -f latin1 -t utf-8."
        ) from None


def require_line_breaks(text: Text) -> None:
    """Refuses a text of a single line.

    Raises:
        ValueError: there is no line break.
    """
    if "\n" not in text.content:
        raise ValueError(
            f"{text.source} has no line break in {len(text.content):,} characters, so it is "
            "probably not plain text: end its lines with line breaks."
        )


def hold_out_last_tenth(text: Text, unit: str) -> tuple[Text, Text]:
    """Returns the first nine tenths of a text and the rest; words are cut after a line break."""
    cut = len(text.content) * 9 // 10
    if unit == "word":
        cut = text.content.rfind("\n", 0, cut) + 1
    return text.cut(0, cut, "first nine tenths"), text.cut(cut, len(text.content), "last tenth")


def text_dataset(
    config: ConfigDict,
    train: Text,
    evaluation: Text,
    unit: str,
    *,
    of_bytes: bool = False,
) -> Dataset:
    """Returns the data set of two texts, with the vocabulary of the first.

    Args:
        config: `config.data`.
        train: the training text.
        evaluation: the evaluation text. Its unknown tokens are one token.
        unit: "word" or "character", unless `config.unit` is set.
        of_bytes: the texts hold a character for each byte.

    Raises:
        ValueError: a text without tokens, or another unit.
    """
    unit = config.unit or unit
    vocabulary = build_vocabulary(train.content, unit, of_bytes=of_bytes)
    length = config.segment_length
    length = DEFAULT_SEGMENT_LENGTH if length is None else length
    eval_length = config.eval_segment_length
    eval_length = length if eval_length is None else eval_length

    def split(text, segment_length, keeps_all):
        content = text.content
        if of_bytes:
            content = content.encode("latin-1").decode("utf-8", "surrogateescape")
        tokens = vocabulary.encode(content)
        if len(tokens) < 2:
            raise ValueError(
                f"{text.source} has {len(tokens)} tokens ({unit}s), but a language model needs at "
                "least 2: take a longer text."
            )
        name = f"{config.name} ({text.source})"
        stride = config.eval_stride if keeps_all else None
        return TokenSplit(tokens, vocabulary.size, segment_length, keeps_all, name, stride)

    return Dataset(
        name=config.name,
        task="language_model",
        train=split(train, length, False),
        eval=split(evaluation, eval_length, True),
        vocabulary=vocabulary,
        notes=tuple(f"Read {text.source}, SHA-256 {text.sha256}." for text in (train, evaluation)),
    )
