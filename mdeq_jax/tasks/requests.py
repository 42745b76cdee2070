"""What the engine hands to a task besides outputs and batches."""

import sys
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict


class TrainedModel(NamedTuple):
    """A model with its weights, as the engine hands it to a prediction.

    Attributes:
        config: the whole config.
        model: of `build_model(config)`.
        variables: Flax variables on the host.
        step: training step that the variables are of.
    """

    config: ConfigDict
    model: nn.Module
    variables: dict
    step: int


class GenerationRequest(NamedTuple):
    """The arguments of `eval.py --generate`.

    Attributes:
        length: of each example.
        prompt: how each one begins.
        prompts: how they begin, instead of `prompt`: `num_samples` of each.
        temperature: 0 always takes the most likely continuation; 1 draws from the model.
        top_k: draw among this many continuations; None: among all.
        num_samples: examples of each prompt.
        seed: of the draws.
        compare: whether to measure what is gained by starting from earlier solves.
    """

    length: int
    prompt: str = ""
    temperature: float = 1.0
    top_k: int | None = None
    num_samples: int = 1
    seed: int = 0
    compare: bool = True
    prompts: tuple[str, ...] | None = None


def read_prompts(source: str | None) -> tuple[str, ...] | None:
    """The lines of a UTF-8 file, or of standard input for "-", without those that are empty.

    None for None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no prompt, or the file is not UTF-8.
    """
    if source is None:
        return None
    if source != "-" and not Path(source).is_file():
        raise FileNotFoundError(
            f"--prompts={source} is no file: give a text file with one prompt a line, or - for "
            "standard input."
        )
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts={source} is not UTF-8: {error}. Convert the file.") from None
    prompts = tuple(line for line in text.split("\n") if line)
    if not prompts:
        raise ValueError(
            f"--prompts needs one prompt a line; got {source!r} without any. For texts without a "
            "prompt, leave --prompts out and set --num_samples."
        )
    return prompts
