"""The first 100 million bytes of a Wikipedia dump: enwik8, and text8 made from another.

M. Mahoney, Large Text Compression Benchmark. The usual cut gives 90, 5 and 5 million bytes.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.text import corpus

SPLITS = ("train", "valid", "test")


def load(config: ConfigDict, name: str) -> Dataset:
    """Returns the bytes of NAME as characters.

    Args:
        config: `config.data`. `data_dir` holds train.txt, valid.txt and test.txt, or the one file
            NAME, whose twentieths 1 to 18, 19 and 20 are the splits; it may be that file itself.
            `eval_split` is "valid" (also if None), "test" or "train".
        name: "enwik8" or "text8".

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a file is empty, or `unit` is not "character".
    """
    check_optional_fields(config, ("eval_split", *corpus.FIELDS))
    if config.unit not in (None, "character"):
        raise ValueError(
            f"config.data.unit is {config.unit!r}, but {name} is read as characters: leave it "
            "unset, or read the file as data.name='text_file'."
        )
    eval_split = choose_eval_split(config, ("valid", "test", "train"))
    texts = _read(config.data_dir, name)
    return corpus.text_dataset(
        config, texts["train"], texts[eval_split], "character", of_bytes=True
    )


def _read(data_dir: str, name: str) -> dict[str, corpus.Text]:
    root = Path(data_dir)
    files = {split: root / f"{split}.txt" for split in SPLITS}
    if data_dir and all(path.is_file() for path in files.values()):
        return {split: corpus.read_text(path, of_bytes=True) for split, path in files.items()}
    path = root if root.is_file() else root / name
    if not data_dir or not path.is_file():
        raise FileNotFoundError(
            f"{name}: {path} not found: set config.data.data_dir to the file {name}, or to the "
            "folder that holds it or train.txt, valid.txt and test.txt."
        )
    text = corpus.read_text(path, of_bytes=True)
    twentieth = len(text.content) // 20
    edges = (0, 18 * twentieth, 19 * twentieth, len(text.content))
    return {
        split: text.cut(start, stop, split) for split, start, stop in zip(SPLITS, edges, edges[1:])
    }
