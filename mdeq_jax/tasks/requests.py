"""What the engine hands to a task besides outputs and batches."""

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
        temperature: 0 always takes the most likely continuation; 1 draws from the model.
        top_k: draw among this many continuations; None: among all.
        num_samples: examples, made at once.
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
