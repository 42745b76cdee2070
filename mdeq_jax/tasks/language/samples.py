"""Samples of text from a trained model, and what they cost."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mdeq_jax import hardware
from mdeq_jax.data import Vocabulary, load_vocabulary
from mdeq_jax.models import family_of
from mdeq_jax.tasks.language.generation import Generated, Generator, Text
from mdeq_jax.tasks.requests import GenerationRequest, TrainedModel
from mdeq_jax.tasks.stream_settings import CPU_SLOTS, check_slots

FILE = "samples.txt"
FIRST = "\n"  # what comes before a text without a prompt
DEFAULT_SEGMENT_LENGTH = 64
MAX_COMPARED = 16  # tokens for which the text before them is solved anew
SLOTS = 64  # of devices other than CPUs


def write_samples(trained: TrainedModel, request: GenerationRequest, workdir: Path) -> str:
    """Writes samples to `workdir/samples.txt`; returns them, and what they cost.

    Raises:
        FileNotFoundError: the work directory has no vocabulary.
        ValueError: a request that cannot be met.
    """
    vocabulary = load_vocabulary(workdir)
    check_request(request, vocabulary)
    check_slots(trained.config)
    begins = (request.prompt,) if request.prompts is None else request.prompts
    prompts = [encode_prompt(begin, vocabulary) for begin in begins]
    texts = [Text(prompt, i) for prompt in prompts for i in range(request.num_samples)]
    generator = make_generator(trained, request, len(texts))
    result = generator(texts, warm=family_of(trained.config).has_equilibrium)
    samples = _listed(begins, result.tokens, request, vocabulary)
    lines = [samples, ""]
    encoded = np.concatenate(prompts)
    unknown = int(np.sum(encoded == vocabulary.unknown))
    if unknown:
        lines.append(
            f"Note: the training text lacks {unknown} of the {len(encoded)} {vocabulary.unit}s of "
            f"the prompt{'s' * (len(begins) > 1)}, which count as unknown."
        )
    lines.append(_cost("Each", vocabulary, result))
    if result.slots > 1:
        lines.append(
            f"With {result.slots} texts at a time, these are {result.tokens_per_second:,.0f} new "
            f"{vocabulary.unit}s per second."
        )
    if request.compare and len(prompts) == 1:
        lines += compare(trained, generator, texts, result, vocabulary)
    path = workdir / FILE
    path.write_text(samples + "\n")
    return "\n".join([*lines, f"Wrote {path}."])


def _listed(
    begins: tuple[str, ...], tokens: np.ndarray, request: GenerationRequest, vocabulary: Vocabulary
) -> str:
    """The texts in the order of their prompts, each under a line that names it."""
    texts = []
    for number, row in enumerate(tokens):
        prompt, sample = divmod(number, request.num_samples)
        names = []
        if len(begins) > 1:
            names.append(f"prompt {prompt + 1} of {len(begins)}")
        if len(begins) == 1 or request.num_samples > 1:
            names.append(f"sample {sample + 1} of {request.num_samples}")
        texts.append(f"--- {', '.join(names)}\n{begins[prompt]}{_continuation(row, vocabulary)}")
    return "\n\n".join(texts)


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


def make_generator(trained: TrainedModel, request: GenerationRequest, num_texts: int) -> Generator:
    """A generator with segments as short as the model allows, and `eval.slots` texts at a time."""
    model: Any = trained.model
    slots = CPU_SLOTS if hardware.target().platform == "cpu" else SLOTS
    return Generator(
        model,
        trained.variables,
        request,
        segment_length=model.shortest_segment(_segment_length(trained)),
        slots=min(trained.config.eval.slots or slots, num_texts),
    )


def _segment_length(trained: TrainedModel) -> int:
    return trained.config.data.segment_length or DEFAULT_SEGMENT_LENGTH


def compare(
    trained: TrainedModel,
    generator: Generator,
    texts: Sequence[Text],
    result: Generated,
    vocabulary: Vocabulary,
) -> list[str]:
    """Lines on the same tokens without the warm start, and without the memory's reuse.

    Args:
        trained: the model.
        generator: that made `result`.
        texts: samples of one prompt.
        result: of the generator for these texts.
        vocabulary: of the model.
    """
    if result.nfe is None:
        return []
    cold = generator(texts, warm=False, forced=result.tokens)
    lines = [_cost("Without the warm start, each", vocabulary, cold)]
    model: Any = trained.model
    if model.shortest_segment(_segment_length(trained)) == 1:
        lines.append(_solved_anew(trained, texts[0].prompt, result, vocabulary))
    return lines


def _solved_anew(
    trained: TrainedModel, prompt: np.ndarray, result: Generated, vocabulary: Vocabulary
) -> str:
    """A line on what a token costs if the text before it is solved anew, without a memory."""
    batch, new = result.slots, result.tokens[: result.slots]
    tokens = np.concatenate([np.broadcast_to(prompt, (batch, len(prompt))), new], axis=1)
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
    generator = make_generator(trained, request, num_texts=1)
    prompt = encode_prompt("", vocabulary)
    result = generator([Text(prompt)], warm=family_of(trained.config).has_equilibrium)
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
