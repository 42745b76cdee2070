"""The tokens of a text: words or characters, and their numbers."""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

END_OF_LINE = "<eos>"
UNKNOWN_WORD = "<unk>"
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"
UNITS = ("word", "character")
FILE = "vocabulary.json"
_LINES_AT_A_TIME = 10_000


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens that a language model distinguishes; the number of a token is its place.

    Attributes:
        tokens: words or characters.
        unit: "word" or "character".
        of_bytes: each character stands for one byte of UTF-8, with the number `ord(character)`.
    """

    tokens: tuple[str, ...]
    unit: str
    of_bytes: bool = False

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """{token: its number}."""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def unknown(self) -> int:
        """The number of tokens that the training text does not have."""
        return self.numbers[UNKNOWN_WORD if self.unit == "word" else UNKNOWN_CHARACTER]

    def encode(self, text: str, *, ends_line: bool = True) -> np.ndarray:
        """Returns the numbers of a text, int32 `[N]`; unknown tokens have the number `unknown`.

        Args:
            text: any text. Words are separated by white space, and each line ends with `<eos>`.
            ends_line: whether the last line of words ends, too, if no line break follows it.
        """
        if self.unit == "character":
            return self._encode_characters(text)
        numbers, unknown = self.numbers, self.unknown
        parts = [
            np.fromiter((numbers.get(word, unknown) for word in words), np.int32)
            for words in _chunks_of_words(text)
        ]
        tokens = np.concatenate([np.zeros(0, np.int32), *parts])
        if text and not ends_line and not text.endswith("\n"):
            return tokens[:-1]
        return tokens

    def _encode_characters(self, text: str) -> np.ndarray:
        if self.of_bytes:
            text = text.encode("utf-8", "surrogateescape").decode("latin-1")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = np.array([ord(token) for token in self.tokens], np.uint32)
        table = np.full(int(max(points.max(initial=0), known.max())) + 1, self.unknown, np.int32)
        table[known] = np.arange(self.size)
        return table[points]

    def decode(self, numbers: Iterable[int] | np.ndarray) -> str:
        """Returns the text of tokens; words are separated by spaces and lines by line breaks.

        Raises:
            ValueError: a number outside the vocabulary.
        """
        array = np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers))
        check_tokens(array, self.size, "decode")
        tokens = [self.tokens[number] for number in array.astype(np.int64)]
        if self.unit == "character":
            text = "".join(tokens)
            if self.of_bytes:
                # Only the unknown character is not a byte. 0xff is never part of UTF-8.
                data = text.replace(UNKNOWN_CHARACTER, "\xff").encode("latin-1")
                return data.decode("utf-8", "replace")
            return text
        text = " ".join("\n" if token == END_OF_LINE else token for token in tokens)
        return text.replace("\n ", "\n").replace(" \n", "\n")

    def save(self, workdir: str | Path) -> None:
        """Writes `workdir/vocabulary.json`."""
        fields = {"unit": self.unit, "of_bytes": self.of_bytes, "tokens": list(self.tokens)}
        Path(workdir, FILE).write_text(json.dumps(fields) + "\n")

    def check(self, workdir: str | Path) -> None:
        """Refuses a work directory whose vocabulary is another one.

        Raises:
            ValueError: names the first difference.
        """
        path = Path(workdir, FILE)
        if not path.exists():
            return
        saved = load_vocabulary(workdir)
        if saved == self:
            return
        pairs = zip(saved.tokens, self.tokens)
        first = next((i for i, (there, here) in enumerate(pairs) if there != here), None)
        if saved.unit != self.unit:
            differs = f"its units are {saved.unit}s, these are {self.unit}s"
        elif first is None:
            differs = f"it has {saved.size:,} tokens, this one {self.size:,}"
        else:
            there, here = saved.tokens[first], self.tokens[first]
            differs = f"its token {first} is {there!r}, here {here!r}"
        raise ValueError(
            f"{path} is the vocabulary of another training text: {differs}. The weights were "
            "trained with its numbers. Set data.name, data.data_dir and data.unit to the text of "
            "that run, or choose another --workdir."
        )


def load_vocabulary(workdir: str | Path) -> Vocabulary:
    """Returns the vocabulary that a work directory was trained with.

    Raises:
        FileNotFoundError: the directory has none.
        ValueError: the file is damaged.
    """
    path = Path(workdir, FILE)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: train there first (train.py), or copy the file of the run that "
            "the weights are from."
        )
    try:
        fields = json.loads(path.read_text())
        tokens, unit = tuple(fields["tokens"]), fields["unit"]
        if unit not in UNITS or not all(isinstance(token, str) for token in tokens):
            raise ValueError("unknown unit or token")
        return Vocabulary(tokens, unit, bool(fields["of_bytes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): copy it again from the run that the weights are from."
        ) from error


def build_vocabulary(text: str, unit: str, *, of_bytes: bool = False) -> Vocabulary:
    """Returns the vocabulary of a training text.

    Words are in the order of Transformer-XL (Dai et al. 2019, 1901.02860): "<eos>", then by falling
    count, ties by first appearance. The unknown token comes last, unless the text has it.
    Characters are ordered alike.

    Args:
        text: the training text.
        unit: "word" or "character".
        of_bytes: the characters of `text` stand for bytes.

    Raises:
        ValueError: another unit.
    """
    if unit not in UNITS:
        raise ValueError(f"config.data.unit is {unit!r}, but must be one of {UNITS}.")
    counts = collections.Counter()
    if unit == "character":
        counts.update(text)
        tokens, unknown = [], UNKNOWN_CHARACTER
    else:
        for line in _lines(text):
            counts.update(line.split())
        counts.pop(END_OF_LINE, None)
        tokens, unknown = [END_OF_LINE], UNKNOWN_WORD
    tokens += [token for token, _ in counts.most_common()]
    if unknown not in counts:
        tokens.append(unknown)
    return Vocabulary(tuple(tokens), unit, of_bytes)


def check_tokens(tokens: np.ndarray, size: int, where: str) -> None:
    """Refuses numbers outside the vocabulary.

    Raises:
        ValueError: names the first one, its position and the range.
    """
    bad = np.flatnonzero((tokens < 0) | (tokens >= size))
    if bad.size:
        raise ValueError(
            f"{where}: token {bad[0]} is {tokens[bad[0]]}, but tokens must lie in [0, {size}) "
            f"({bad.size} of {len(tokens)} do not). Encode the text with this vocabulary."
        )


def _lines(text: str) -> Iterator[str]:
    """Lines without their breaks. Only line feeds break lines, and the last break ends a line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _chunks_of_words(text: str) -> Iterator[list[str]]:
    """Words and "<eos>" of many lines at a time, so that a large text needs little memory."""
    words, lines = [], 0
    for line in _lines(text):
        words += line.split()
        words.append(END_OF_LINE)
        lines += 1
        if lines % _LINES_AT_A_TIME == 0:
            yield words
            words = []
    yield words
