"""Samples of text from a trained model, and what they cost."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mdeq_jax.data import Vocabulary, load_vocabulary
from mdeq_jax.models import family_of
from mdeq_jax.tasks.language.generation import Generated, generate
from mdeq_jax.tasks.requests import GenerationRequest, TrainedModel

FILE = "samples.txt"
FIRST = "\n"  # what comes before a text without a prompt
DEFAULT_SEGMENT_LENGTH = 64
MAX_COMPARED = 16  # tokens for which the text before them is solved anew


def write_samples(trained: TrainedModel, request: GenerationRequest, workdir: Path) -> str:
    """Writes samples to `workdir/samples.txt`; returns them, and what they cost.

    Raises:
        FileNotFoundError: the work directory has no vocabulary.
        ValueError: a request that cannot be met.
    """
    vocabulary = load_vocabulary(workdir)
    check_request(request, vocabulary)
    prompt = encode_prompt(request.prompt, vocabulary)
    result = run(trained, prompt, request)
    texts = [request.prompt + _continuation(row, vocabulary) for row in result.tokens]
    samples = "\n\n".join(
        f"--- sample {number} of {len(texts)}\n{text}" for number, text in enumerate(texts, 1)
    )
    lines = [samples, ""]
    unknown = int(np.sum(prompt == vocabulary.unknown))
    if unknown:
        lines.append(
            f"Note: the training text lacks {unknown} of the {len(prompt)} {vocabulary.unit}s of "
            "the prompt, which count as unknown."
        )
    lines.append(_cost("Each", vocabulary, result))
    if request.compare:
        lines += compare(trained, prompt, request, result, vocabulary)
    path = workdir / FILE
    path.write_text(samples + "\n")
    return "\n".join([*lines, f"Wrote {path}."])


def check_request(request: GenerationRequest, vocabulary: Vocabulary) -> None:
    """Refuses a request that cannot be met.

    Raises:
        ValueError: names the number and the requirement.
    """
    for name, value, least in (
        ("generate", request.length, 1),
        ("num_samples", request.num_samples, 1),
        ("temperature", request.temperature, 0),
        ("top_k", 1 if request.top_k is None else request.top_k, 1),
    ):
        if not value >= least:
            raise ValueError(f"--{name} must be at least {least}; got {value}.")
    if request.top_k is not None and request.top_k > vocabulary.size:
        raise ValueError(
            f"--top_k must be at most {vocabulary.size}, the number of {vocabulary.unit}s that the "
            f"model knows; got {request.top_k}."
        )


def encode_prompt(text: str, vocabulary: Vocabulary) -> np.ndarray:
    """The tokens of a prompt `[P]`; for an empty one, the end of a line."""
    tokens = vocabulary.encode(text, ends_line=False)
    return tokens if len(tokens) else vocabulary.encode(FIRST)


def run(
    trained: TrainedModel, prompt: np.ndarray, request: GenerationRequest, **options: Any
) -> Generated:
    """`generate`, with segments as short as the model allows."""
    model: Any = trained.model
    options.setdefault("warm", family_of(trained.config).has_equilibrium)
    return generate(
        model,
        trained.variables,
        prompt,
        request,
        segment_length=model.shortest_segment(_segment_length(trained)),
        **options,
    )


def _segment_length(trained: TrainedModel) -> int:
    return trained.config.data.segment_length or DEFAULT_SEGMENT_LENGTH


def compare(
    trained: TrainedModel,
    prompt: np.ndarray,
    request: GenerationRequest,
    result: Generated,
    vocabulary: Vocabulary,
) -> list[str]:
    """Lines on the same tokens without the warm start, and without the memory's reuse."""
    if result.nfe is None:
        return []
    cold = run(trained, prompt, request, warm=False, forced=result.tokens)
    lines = [_cost("Without the warm start, each", vocabulary, cold)]
    model: Any = trained.model
    if model.shortest_segment(_segment_length(trained)) == 1:
        lines.append(_solved_anew(trained, prompt, result, vocabulary))
    return lines


def _solved_anew(
    trained: TrainedModel, prompt: np.ndarray, result: Generated, vocabulary: Vocabulary
) -> str:
    """A line on what a token costs if the text before it is solved anew, without a memory."""
    batch = len(result.tokens)
    tokens = np.concatenate([np.broadcast_to(prompt, (batch, len(prompt))), result.tokens], axis=1)
    model: Any = trained.model
    length = min(tokens.shape[1] - 1, _segment_length(trained))

    @jax.jit
    def solve(variables, window):
        out = model.apply(variables, window)
        # What a draw needs, so that the time is comparable with that of `generate`.
        last = out.logits.replace(hidden=out.logits.hidden[:, -1:])
        return out.solution.nfe, last.log_probs()

    variables, costs = jax.device_put(trained.variables), []
    ends = range(tokens.shape[1] - 1, length - 1, -1)[:MAX_COMPARED]
    windows = [tokens[:, end - length : end].astype(np.int32) for end in ends]
    jax.block_until_ready(solve(variables, windows[0]))  # compiles
    clock = time.perf_counter()
    costs = jax.device_get([solve(variables, window)[0] for window in windows])
    seconds = (time.perf_counter() - clock) / len(windows)
    return (
        f"Without the memory, each {vocabulary.unit} takes {np.mean(costs):.1f} evaluations of the "
        f"cell on {length} positions ({1e3 * seconds:.1f} ms)."
    )


def closing_sample(trained: TrainedModel, workdir: Path) -> list[str]:
    """Lines with a short sample, for the end of a training."""
    vocabulary = load_vocabulary(workdir)
    request = GenerationRequest(
        length=40 if vocabulary.unit == "word" else 240,
        temperature=0.8,
        top_k=min(40, vocabulary.size),
        seed=trained.config.seed,
    )
    result = run(trained, encode_prompt("", vocabulary), request)
    text = _continuation(result.tokens[0], vocabulary)
    return ["A sample (temperature 0.8, top_k 40):", text, _cost("Each", vocabulary, result)]


def _continuation(tokens: np.ndarray, vocabulary: Vocabulary) -> str:
    text = vocabulary.decode(tokens)
    return f" {text}" if vocabulary.unit == "word" else text


def _cost(subject: str, vocabulary: Vocabulary, result: Generated) -> str:
    what = f"{subject} {vocabulary.unit} takes "
    if result.nfe is None:
        return f"{what}{1e3 * result.seconds:.1f} ms."
    return (
        f"{what}{np.mean(result.nfe):.1f} evaluations of the cell ({1e3 * result.seconds:.1f} ms)."
    )
