"""WikiText-103: 103 million words of Wikipedia's good and featured articles.

S. Merity, C. Xiong, J. Bradbury and R. Socher, Pointer Sentinel Mixture Models, 1609.07843.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.data.dataset import Dataset, check_optional_fields, choose_eval_split
from mdeq_jax.data.text import corpus

SPLITS = ("train", "valid", "test")


def load(config: ConfigDict) -> Dataset:
    """Returns the words of wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.

    Args:
        config: `config.data`. `eval_split` is "valid" (also if None), "test" or "train".
            `train_split` is "train" if None. With "valid" a small model trains on the 217,646
            tokens of the validation split, and the training file is not needed.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split, or a file is damaged.
    """
    check_optional_fields(config, ("train_split", "eval_split", *corpus.FIELDS))
    train_split = config.train_split or "train"
    if train_split not in SPLITS:
        raise ValueError(
            f"config.data.train_split is {train_split!r}, but must be one of {SPLITS}."
        )
    eval_split = choose_eval_split(config, ("valid", "test", "train"))
    train, evaluation = (_read(config.data_dir, split) for split in (train_split, eval_split))
    return corpus.text_dataset(config, train, evaluation, "word")


def _read(data_dir: str, split: str) -> corpus.Text:
    path = Path(data_dir, f"wiki.{split}.tokens")
    if not data_dir or not path.is_file():
        hint = ""
        if split == "train":
            hint = " For a small run without it, set config.data.train_split='valid'."
        raise FileNotFoundError(
            f"wikitext103: {path} not found: set config.data.data_dir to the folder that holds "
            f"wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.{hint}"
        )
    text = corpus.read_text(path)
    corpus.require_line_breaks(text)
    return text
