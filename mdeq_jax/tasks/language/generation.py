"""New text, a token at a time, from one compiled program.

Texts share a fixed number of slots. A text that is finished hands its slot to the next one, which
has its own prompt, memory, position and random keys. The slots solve each token in lock step. How
long a text takes is known in advance, so the host plans all steps and never waits for a token.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.language import Segment
from mdeq_jax.tasks.language.slot_plan import IDLE, Plan, plan_slots
from mdeq_jax.tasks.requests import GenerationRequest

NO_TOKEN = -1  # where the token that was drawn last follows


class Text(NamedTuple):
    """A text to make.

    Attributes:
        prompt: `[P]` tokens, at least one.
        sample: number among the samples of this prompt, from 0; decides the random keys.
    """

    prompt: np.ndarray
    sample: int = 0


class Progress(NamedTuple):
    """What is known before the next token of each slot, S of them.

    Attributes:
        tokens: `[S, T]` of the segment; those after `position` do not count.
        position: `[S]` of the last token in the segment.
        z: `[S, T, C]` equilibrium of the segment when it was last solved.
        memory: of the positions before the segment.
    """

    tokens: jax.Array
    position: jax.Array
    z: jax.Array
    memory: Any


class StepInputs(NamedTuple):
    """What the host gives to one step; each `[S]` int32.

    Attributes:
        token: to append; `NO_TOKEN`: the one that was drawn last.
        number: of the token in its text, from 0; `IDLE` if the slot has no text.
        sample: as in `Text`.
    """

    token: np.ndarray
    number: np.ndarray
    sample: np.ndarray


class Generated(NamedTuple):
    """New text, and what it cost.

    Attributes:
        tokens: `[N, length]` after the prompts, of N texts in their order.
        nfe: evaluations of the cell in each step that draws a token; None for a model without an
            equilibrium.
        seconds: of a step, without compiling.
        tokens_per_second: new tokens of all texts, without compiling.
        slots: how many texts there were at a time.
    """

    tokens: np.ndarray
    nfe: np.ndarray | None
    seconds: float
    tokens_per_second: float
    slots: int


class Generator:
    """Continues texts, a fixed number of them at a time; compiles one step.

    Tokens fill a segment from the left; a full segment moves into the memory, as in training. The
    equilibrium of a segment starts from the one before the last token was appended, whose state is
    first taken to be that of the token before it.

    A text depends on its prompt, the number of the sample and the seed. With the same number of
    slots it is the same to the bit, whatever the other texts are; another number rounds
    differently.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: dict,
        request: GenerationRequest,
        *,
        segment_length: int,
        slots: int,
    ):
        """Prepares the step.

        Args:
            model: a language model.
            variables: of the model.
            request: see there; its prompts are not read.
            segment_length: positions that are solved together; 1 for a model whose memory replaces
                them exactly.
            slots: S. Memory grows with S, not with the number of texts.
        """
        self._model, self._variables = model, jax.device_put(variables)
        self._length, self._slots, self._segment_length = request.length, slots, segment_length
        self._keys = _sample_keys(request.seed, request.num_samples)
        self._step = jax.jit(partial(_step, model, draw_from(request)), donate_argnums=1)

    def __call__(
        self, texts: Sequence[Text], *, warm: bool = True, forced: np.ndarray | None = None
    ) -> Generated:
        """Continues N texts.

        Args:
            texts: in the order in which they take the slots.
            warm: whether solves start from earlier ones, and not from zeros.
            forced: `[N, length]`, continue with these instead of drawing, to compare costs.
        """
        plan = plan_slots([len(text.prompt) - 1 + self._length for text in texts], self._slots)
        progress = _empty(self._model, self._slots, self._segment_length)
        drawn, draws, costs, clock = jnp.zeros(self._slots, jnp.int32), [], [], 0.0
        for inputs in _inputs(plan, texts, forced):
            progress, drawn, nfe = self._step(
                self._variables, progress, drawn, inputs, self._keys, warm
            )
            if not draws:
                jax.block_until_ready(drawn)
                clock = time.perf_counter()  # the first call has compiled
            draws.append(drawn)
            costs.append(nfe)
        draws, costs = jax.device_get((draws, costs))
        seconds = (time.perf_counter() - clock) / max(1, len(draws) - 1)
        starts = [at.first + len(text.prompt) - 1 for text, at in zip(texts, plan.places)]
        tokens = [
            [row[at.slot] for row in draws[start : at.stop]]
            for start, at in zip(starts, plan.places)
        ]
        drawing = {i for start, at in zip(starts, plan.places) for i in range(start, at.stop)}
        return Generated(
            tokens=np.array(tokens, np.int32) if forced is None else forced,
            nfe=None if costs[0] is None else np.array([costs[i] for i in sorted(drawing)]),
            seconds=seconds,
            tokens_per_second=len(texts) * self._length / (seconds * len(draws)),
            slots=self._slots,
        )


def _sample_keys(seed: int, count: int) -> jax.Array:
    """Random keys of `count` samples; each token folds its number into them."""
    key = jax.random.key(seed)
    # Counted down from the largest number, so that no token folds the same one in.
    others = [jax.random.fold_in(key, 2**32 - sample) for sample in range(1, count)]
    return jnp.stack([key, *others])


def _inputs(plan: Plan, texts: Sequence[Text], forced: np.ndarray | None):
    """Yields the inputs of one step after the other."""
    samples = np.array([text.sample for text in texts], np.int32)
    for text, number in zip(plan.text, plan.number):
        token = np.full_like(number, NO_TOKEN)
        for slot in np.flatnonzero(text != IDLE):
            prompt, after = texts[text[slot]].prompt, number[slot] - len(texts[text[slot]].prompt)
            if after < 0:
                token[slot] = prompt[number[slot]]
            elif forced is not None:
                token[slot] = forced[text[slot], after]
        yield StepInputs(token, number, samples[text])


def _empty(model: Any, slots: int, length: int) -> Progress:
    tokens = jnp.zeros((slots, length), jnp.int32)
    position = jnp.full((slots,), -1, jnp.int32)
    return Progress(tokens, position, model.zero_state(tokens), model.empty_memory(slots))


def _step(model, draw, variables, progress, drawn, inputs, keys, warm):
    """Appends a token in each slot, and draws the one after it.

    Returns:
        Progress, the tokens drawn `[S]`, and evaluations of the cell; None without an equilibrium.
    """
    slots, length = progress.tokens.shape
    # A text that begins finds what `_empty` makes.
    progress = _where(inputs.number == 0, _empty(model, slots, length), progress)
    token = jnp.where(inputs.token == NO_TOKEN, drawn, inputs.token)
    full = progress.position == length - 1
    position, row = jnp.where(full, 0, progress.position + 1), jnp.arange(slots)
    tokens = progress.tokens.at[row, position].set(token)
    # The neighbour's state is near: the last one of the full segment, or the one before.
    near = progress.z[row, jnp.where(full, length - 1, position - 1)]
    z0 = jnp.where(warm, progress.z.at[row, position].set(near), 0)
    # A start that is not finite ends the solve of an idle slot, which the others wait for.
    z0 = jnp.where((inputs.number == IDLE)[:, None, None], jnp.nan, z0)
    out = model.apply(variables, Segment(tokens, progress.memory), forward=ForwardOptions(), z0=z0)
    last = jnp.take_along_axis(out.logits.hidden, position[:, None, None], axis=1)
    log_probs = out.logits.replace(hidden=last).log_probs()[:, 0]  # [S, vocabulary]
    drawn = draw(log_probs, jax.vmap(jax.random.fold_in)(keys[inputs.sample], inputs.number))
    memory = _where(position == length - 1, out.memory, progress.memory)
    nfe = None if out.solution is None else out.solution.nfe
    return Progress(tokens, position, out.z_star, memory), drawn, nfe


def _where(chosen: jax.Array, ours: Any, theirs: Any) -> Any:
    """Rows of one pytree where `chosen` `[S]`, else those of the other."""

    def rows(x, y):
        return jnp.where(jnp.expand_dims(chosen, tuple(range(1, x.ndim))), x, y)

    return jax.tree.map(rows, ours, theirs)


def draw_from(request: GenerationRequest) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `draw(log_probs [S, V], keys [S]) -> tokens [S]`."""

    def draw(log_probs, keys):
        if request.temperature == 0:
            return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
        if request.top_k is not None:
            least = lax.top_k(log_probs, request.top_k)[0][:, -1:]
            log_probs = jnp.where(log_probs >= least, log_probs, -jnp.inf)
        drawn = jax.vmap(jax.random.categorical)(keys, log_probs / request.temperature)
        return drawn.astype(jnp.int32)

    return draw
