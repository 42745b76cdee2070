"""The equilibrium cell of a DEQ-Transformer: relative-position attention, then a feed-forward.

The parameters are a Flax module, `TransformerCell`; calling it gives the cell's weights (weight
norm applied). The computation is the pure function `apply_cell(spec, weights, z, x)`, so that a
solver calls it many times on weights that were made once. What does not depend on z (keys and
values of the memory, projected distances, the mask) is in `x`, made once by `condition`.

Sources: Bai, Kolter, Koltun 2019 (1909.01377), section 4.2; Dai et al. 2019 (Transformer-XL,
1901.02860), section 3.3, for the attention.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from mdeq_jax.layers import DenseWeights, apply_dense, dropout
from mdeq_jax.layers.conv import normal_001
from mdeq_jax.layers.relative_position import shift_to_positions

LAYER_NORM_EPS = 1e-5


class CellSpec(NamedTuple):
    """What is fixed about a cell.

    Attributes:
        d_model: width of the state.
        n_head: attention heads.
        d_head: width of a head; `n_head * d_head` is `d_model`.
        d_inner: width inside the feed-forward.
        pre_lnorm: normalise the input of attention and feed-forward instead of their output.
        weight_norm: weight-normalised kernels.
        dropout: rate of the variational dropout, where there are masks for it.
        dropatt: the same for attention probabilities.
        dtype: type of the computation; None: that of weights and state.
    """

    d_model: int
    n_head: int
    d_head: int
    d_inner: int
    pre_lnorm: bool = False
    weight_norm: bool = True
    dropout: float = 0.0
    dropatt: float = 0.0
    dtype: jnp.dtype | None = None


class CellMasks(NamedTuple):
    """What dropout keeps, as bool; None where nothing is dropped.

    Attributes:
        attention_probabilities: `[B, n_head, T, K]`.
        attention_output: `[B, 1, d_model]`.
        ff_hidden: `[B, 1, d_inner]`.
        ff_output: `[B, 1, d_model]`.
    """

    attention_probabilities: jax.Array | None = None
    attention_output: jax.Array | None = None
    ff_hidden: jax.Array | None = None
    ff_output: jax.Array | None = None


KEEP_ALL = CellMasks()


class CellInput(NamedTuple):
    """What a cell is conditioned on: T positions after L of memory, K = L + T.

    Attributes:
        injection: `[B, T, 3 d_model]`, added to queries, keys and values, in this order.
        memory_keys: `[B, L, n_head, d_head]`.
        memory_values: `[B, L, n_head, d_head]`.
        distances: `[K, n_head, d_head]` keys of the distances K - 1, ..., 0.
        allowed: `[B, T, K]` or `[1, T, K]` bool, which keys a query attends to.
        masks: of dropout.
    """

    injection: jax.Array
    memory_keys: jax.Array
    memory_values: jax.Array
    distances: jax.Array
    allowed: jax.Array
    masks: CellMasks = KEEP_ALL


class TransformerCell(nn.Module):
    """Parameters of the cell; calling it gives the weights that `apply_cell` takes."""

    spec: CellSpec

    @nn.compact
    def __call__(self) -> dict:
        """The weights by layer, in the type of the computation."""
        spec = self.spec
        d, wide = spec.d_model, spec.d_inner
        dense = partial(DenseWeights, weight_norm=spec.weight_norm)
        heads = (spec.n_head, spec.d_head)
        weights = {
            "qkv": dense((d, 3 * d), use_bias=False, name="qkv")(),
            "distance": dense((d, d), use_bias=False, name="distance")(),
            "output": dense((d, d), name="output")(),
            "ff1": dense((d, wide), name="ff1")(),
            "ff2": dense((wide, d), name="ff2")(),
            "content_bias": self.param("content_bias", normal_001, heads),
            "distance_bias": self.param("distance_bias", normal_001, heads),
        }
        if spec.dtype is not None:
            weights = jax.tree.map(lambda w: w.astype(spec.dtype), weights)
        return weights


def layer_norm(x: jax.Array) -> jax.Array:
    """Normalises the last axis; no scale or bias; computed in float32 or better."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + LAYER_NORM_EPS)).astype(x.dtype)


def attention_mask(queries: int, memory: int, filled: jax.Array, local_size: int) -> jax.Array:
    """Which keys a query attends to: at most `local_size` - 1 back, and none that is empty memory.

    Args:
        queries: T.
        memory: L, positions in front of the queries.
        filled: `[B]` how many of them, counted from the last, hold a state.
        local_size: how many keys a query attends to at most, its own included.

    Returns:
        `[B, T, K]` bool.
    """
    query = memory + jnp.arange(queries)[None, :, None]
    key = jnp.arange(memory + queries)[None, None, :]
    distance = query - key
    local = (distance >= 0) & (distance < local_size)
    return local & (key >= memory - filled[:, None, None])


def condition(
    spec: CellSpec,
    weights: dict,
    injection: jax.Array,
    memory_z: jax.Array,
    memory_injection: jax.Array,
    features: jax.Array,
    allowed: jax.Array,
    masks: CellMasks = KEEP_ALL,
) -> CellInput:
    """The input of a cell, with everything in it that does not depend on z.

    Args:
        spec: of the cell.
        weights: as `TransformerCell` gives them.
        injection: `[B, T, 3 d_model]` of the segment.
        memory_z: `[B, L, d_model]` states before the segment.
        memory_injection: `[B, L, 3 d_model]` their injections.
        features: `[K, d_model]` of `distance_features(K)`, dropout applied.
        allowed: of `attention_mask`.
        masks: of dropout.
    """
    injection, memory_z, memory_injection, features = (
        _cast(spec, x) for x in (injection, memory_z, memory_injection, features)
    )
    keys, values = project(spec, weights, memory_z, memory_injection)[1:]
    distances = rearrange(
        apply_dense(features, weights["distance"]), "k (h d) -> k h d", h=spec.n_head
    )
    return CellInput(injection, keys, values, distances, allowed, masks)


def _cast(spec: CellSpec, x: jax.Array) -> jax.Array:
    return x if spec.dtype is None else x.astype(spec.dtype)


def project(spec: CellSpec, weights: dict, z: jax.Array, injection: jax.Array) -> jax.Array:
    """Queries, keys and values `[3, B, T, n_head, d_head]` of a state `[B, T, d_model]`."""
    y = layer_norm(z) if spec.pre_lnorm else z
    qkv = apply_dense(y, weights["qkv"]) + injection  # [B, T, 3 d_model]
    return rearrange(qkv, "b t (three h d) -> three b t h d", three=3, h=spec.n_head)


def attention_probabilities(
    weights: dict, queries: jax.Array, keys: jax.Array, x: CellInput
) -> jax.Array:
    """`[B, n_head, T, K]`; equation (5) of 1901.02860, with one shared projection for distances."""
    content = jnp.einsum("bihd,bjhd->bhij", queries + weights["content_bias"][None, None], keys)
    distance = jnp.einsum(
        "bihd,khd->bhik", queries + weights["distance_bias"][None, None], x.distances
    )
    scores = (content + shift_to_positions(distance)) * queries.shape[-1] ** -0.5
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    wide = jnp.where(x.allowed[:, None], wide, jnp.finfo(wide.dtype).min)
    return jax.nn.softmax(wide).astype(scores.dtype)


def attend(spec: CellSpec, weights: dict, z: jax.Array, x: CellInput) -> jax.Array:
    """The attention of the state to the memory and itself, before its output layer."""
    queries, keys, values = project(spec, weights, z, x.injection)
    keys = jnp.concatenate([x.memory_keys, keys], axis=1)  # [B, K, n_head, d_head]
    values = jnp.concatenate([x.memory_values, values], axis=1)
    probabilities = attention_probabilities(weights, queries, keys, x)
    probabilities = _drop(probabilities, x.masks.attention_probabilities, spec.dropatt)
    attended = jnp.einsum("bhij,bjhd->bihd", probabilities, values)
    return rearrange(attended, "b t h d -> b t (h d)")


def attention_block(spec: CellSpec, weights: dict, z: jax.Array, x: CellInput) -> jax.Array:
    """Attention with its residual: of the raw state, in both norms."""
    y = apply_dense(attend(spec, weights, z, x), weights["output"])
    y = z + _drop(y, x.masks.attention_output, spec.dropout)
    return y if spec.pre_lnorm else layer_norm(y)


def feed_forward_block(spec: CellSpec, weights: dict, z: jax.Array, masks: CellMasks) -> jax.Array:
    """The feed-forward with its residual: of its normalised input, if it is normalised."""
    y = layer_norm(z) if spec.pre_lnorm else z
    hidden = nn.relu(apply_dense(y, weights["ff1"]))  # [B, T, d_inner]
    hidden = _drop(hidden, masks.ff_hidden, spec.dropout)
    y = y + _drop(apply_dense(hidden, weights["ff2"]), masks.ff_output, spec.dropout)
    return y if spec.pre_lnorm else layer_norm(y)


def _drop(x: jax.Array, mask: jax.Array | None, rate: float) -> jax.Array:
    return x if mask is None else dropout(x, mask, rate)


@partial(jax.jit, static_argnums=0)
def apply_cell(spec: CellSpec, weights: dict, z: jax.Array, x: CellInput) -> jax.Array:
    """One application of the cell, z <- f(z; x).

    Args:
        spec: of the cell.
        weights: as `TransformerCell` gives them.
        z: state `[B, T, d_model]`.
        x: of `condition`.

    Returns:
        The new state, in the shape and type of `z`.
    """
    y = attention_block(spec, weights, _cast(spec, z), x)
    return feed_forward_block(spec, weights, y, x.masks).astype(z.dtype)
