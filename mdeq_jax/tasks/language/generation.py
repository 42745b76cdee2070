"""New text, a token at a time, from one compiled program."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.language import Segment
from mdeq_jax.tasks.requests import GenerationRequest

NO_TOKEN = -1  # where nothing is forced


class Progress(NamedTuple):
    """What is known before the next token.

    Attributes:
        tokens: `[B, T]` of the segment; those after `position` do not count.
        position: of the last token in the segment.
        z: `[B, T, C]` equilibrium of the segment when it was last solved.
        memory: of the positions before the segment.
    """

    tokens: jax.Array
    position: jax.Array
    z: jax.Array
    memory: Any


class Generated(NamedTuple):
    """New text, and what it cost.

    Attributes:
        tokens: `[B, length]` after the prompt.
        nfe: `[length]` evaluations of the cell a token; None for a model without an equilibrium.
        seconds: a token, without compiling.
    """

    tokens: np.ndarray
    nfe: np.ndarray | None
    seconds: float


def generate(
    model: nn.Module,
    variables: dict,
    prompt: np.ndarray,
    request: GenerationRequest,
    *,
    segment_length: int,
    warm: bool = True,
    forced: np.ndarray | None = None,
) -> Generated:
    """Continues a prompt, `request.num_samples` times at once.

    Tokens fill a segment from the left; a full segment moves into the memory, as in training. The
    equilibrium of a segment starts from the one before the last token was appended, whose state is
    first taken to be that of the token before it.

    Args:
        model: a language model.
        variables: of the model.
        prompt: `[P]`, at least one token.
        request: see there.
        segment_length: positions that are solved together; 1 for a model whose memory replaces
            them exactly.
        warm: whether solves start from earlier ones, and not from zeros.
        forced: `[B, length]`, continue with these instead of drawing, to compare costs.
    """
    batch = request.num_samples
    forced = np.full((batch, request.length), NO_TOKEN) if forced is None else forced
    # What follows each token: the rest of the prompt, then what is drawn or forced.
    rest = np.broadcast_to(prompt[1:], (batch, len(prompt) - 1))
    following = np.concatenate([rest, forced], axis=1).astype(np.int32)
    token = jnp.full((batch,), prompt[0], jnp.int32)
    progress = _empty(model, batch, segment_length)
    step = jax.jit(partial(_step, model, draw_from(request)))
    variables, key = jax.device_put(variables), jax.random.key(request.seed)
    tokens, costs, clock = [], [], 0.0
    for number in range(following.shape[1]):
        progress, token, nfe = step(
            variables, progress, token, following[:, number], jax.random.fold_in(key, number), warm
        )
        if number == 0:
            jax.block_until_ready(token)
            clock = time.perf_counter()  # the first call has compiled
        tokens.append(token)
        costs.append(nfe)
    tokens = np.stack(jax.device_get(tokens), axis=1)
    seconds = (time.perf_counter() - clock) / max(1, len(costs) - 1)
    nfe = None if costs[0] is None else np.array(jax.device_get(costs))[-request.length :]
    return Generated(tokens[:, -request.length :], nfe, seconds)


def _empty(model: Any, batch: int, length: int) -> Progress:
    tokens = jnp.zeros((batch, length), jnp.int32)
    return Progress(tokens, jnp.int32(-1), model.zero_state(tokens), model.empty_memory(batch))


def _step(model, draw, variables, progress, token, forced, key, warm):
    """Appends `token` `[B]`, and draws the one after it unless it is forced.

    Returns:
        Progress, the next token `[B]`, and evaluations of the cell; None without an equilibrium.
    """
    length = progress.tokens.shape[1]
    full = progress.position == length - 1
    position = jnp.where(full, 0, progress.position + 1)
    tokens = progress.tokens.at[:, position].set(token)
    # The neighbour's state is near: the last one of the full segment, or the one before.
    near = progress.z[:, jnp.where(full, length - 1, position - 1)]
    z0 = jnp.where(warm, progress.z.at[:, position].set(near), 0)
    out = model.apply(variables, Segment(tokens, progress.memory), forward=ForwardOptions(), z0=z0)
    last = lax.dynamic_slice_in_dim(out.logits.hidden, position, 1, axis=1)
    log_probs = out.logits.replace(hidden=last).log_probs()[:, 0]  # [B, vocabulary]
    drawn = jnp.where(forced == NO_TOKEN, draw(log_probs, key), forced)
    ended = position == length - 1
    memory = jax.tree.map(lambda new, old: jnp.where(ended, new, old), out.memory, progress.memory)
    nfe = None if out.solution is None else out.solution.nfe
    return Progress(tokens, position, out.z_star, memory), drawn, nfe


def draw_from(request: GenerationRequest) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `draw(log_probs [B, V], key) -> tokens [B]`."""

    def draw(log_probs, key):
        if request.temperature == 0:
            return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
        if request.top_k is not None:
            least = lax.top_k(log_probs, request.top_k)[0][:, -1:]
            log_probs = jnp.where(log_probs >= least, log_probs, -jnp.inf)
        return jax.random.categorical(key, log_probs / request.temperature).astype(jnp.int32)

    return draw
