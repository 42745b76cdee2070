"""Parts of the original's optimiser that Optax does not have, as transformations and a schedule.

They reproduce its updates exactly: its clipping, its learning rate, and numbers that several
parameters of its optimiser share.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax

_CLIP_EPS = 1e-6
ParameterPath = tuple[str, ...]


def clip_total_norm(max_norm: float) -> optax.GradientTransformation:
    """g <- g min(1, max_norm / (|g| + 1e-6)), as `torch.nn.utils.clip_grad_norm_`."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + _CLIP_EPS))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def warmup_then_cosine(
    peak: float, end: float, warmup_steps: int, max_step: int
) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of step t, counted from 0, as the original sets it after every step.

    Step 0 has the full rate `peak`. Then it is `peak` t / `warmup_steps` during the warm-up, and
    `end` + (`peak` - `end`) (1 + cos(pi t / max_step)) / 2 after it. The cosine counts the steps of
    the warm-up too, so the rate falls a little at its end.
    """

    def rate(step):
        step = jnp.asarray(step)
        cosine = end + (peak - end) * (1 + jnp.cos(jnp.pi * step / max_step)) / 2
        rising = peak * step / max(warmup_steps, 1)
        return jnp.where((step > 0) & (step < warmup_steps), rising, cosine)

    return rate


def sum_shared_updates(
    groups: tuple[tuple[ParameterPath, ...], ...],
) -> optax.GradientTransformation:
    """Moves each parameter of a group by the sum of the group's updates.

    In the original some parameters share one storage. Each has its own gradient and moments, and
    all their updates reach the same numbers. Parameters of a group that are equal stay equal, to
    the bit.

    Args:
        groups: paths in the tree of parameters.
    """

    def update(updates, state, params=None):
        del params
        for group in groups:
            total = reduce(jnp.add, [_get(updates, path) for path in group])
            for path in group:
                updates = _with(updates, path, total)
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _get(tree: Any, path: ParameterPath) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree


def _with(tree: Mapping, path: ParameterPath, leaf: jax.Array) -> dict:
    """A copy of nested dictionaries with one leaf replaced."""
    key, *rest = path
    return {**tree, key: _with(tree[key], tuple(rest), leaf) if rest else leaf}
