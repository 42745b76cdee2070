"""Parts of the original's optimiser that Optax does not have.

They reproduce its updates exactly: its clipping, and numbers that several parameters share.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax

ParameterPath = tuple[str, ...]


def clip_total_norm(max_norm: float, eps: float = 1e-6) -> optax.GradientTransformationExtraArgs:
    """g <- g min(1, max_norm / (|g| + eps)), as `torch.nn.utils.clip_grad_norm_`.

    The update takes |g| as `grad_norm`, or computes it.
    """

    def update(updates, state, params=None, *, grad_norm=None, **_):
        del params
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        factor = jnp.minimum(1.0, max_norm / (norm + eps))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


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


def equal_shared(params: Mapping, groups: tuple[tuple[ParameterPath, ...], ...]) -> Mapping:
    """Parameters in which each of a group has the numbers of the group's first."""
    for group in groups:
        for path in group[1:]:
            params = _with(params, path, _get(params, group[0]))
    return params


def _get(tree: Any, path: ParameterPath) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree


def _with(tree: Mapping, path: ParameterPath, leaf: jax.Array) -> dict:
    """A copy of nested dictionaries with one leaf replaced."""
    key, *rest = path
    return {**tree, key: _with(tree[key], tuple(rest), leaf) if rest else leaf}
