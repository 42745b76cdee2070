"""The dropout masks of one forward pass: drawn once, the same at every step of the solver.

Gal, Ghahramani 2016 (1512.05287). The layouts are those of the original.
"""

from typing import NamedTuple

import jax

from mdeq_jax.layers import dropout_mask, sample_keys
from mdeq_jax.models.deq_transformer.cell import KEEP_ALL, CellMasks, CellSpec


class DropoutMasks(NamedTuple):
    """What dropout keeps, as bool; None where nothing is dropped.

    Attributes:
        word_embedding: `[B, 1, d_model]`.
        positional: `[1, d_model]`, the same for all samples and distances.
        cell: masks inside the cell.
        core_output: `[B, T, 1]`: as in the original, it drops whole positions.
    """

    word_embedding: jax.Array | None = None
    positional: jax.Array | None = None
    cell: CellMasks = KEEP_ALL
    core_output: jax.Array | None = None


NO_DROPOUT = DropoutMasks()


def draw_masks(
    key: jax.Array, first_sample: int | jax.Array, spec: CellSpec, sizes: tuple[int, int, int]
) -> DropoutMasks:
    """Draws all masks; those of a sample depend only on its index in the global batch.

    Args:
        key: random key of the batch, the same on every device.
        first_sample: index of this device's first sample.
        spec: rates and widths.
        sizes: `(B, T, K)`.
    """
    batch, queries, keys = sizes
    own, shared = jax.random.split(key)
    samples = sample_keys(own, first_sample, batch)

    def draw(number: int, rate: float, *shape: int) -> jax.Array | None:
        if rate == 0:
            return None
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))(samples, number)
        return dropout_mask(fold, rate, (batch, *shape))

    rate, d = spec.dropout, spec.d_model
    cell = CellMasks(
        attention_probabilities=draw(0, spec.dropatt, spec.n_head, queries, keys),
        attention_output=draw(1, rate, 1, d),
        ff_hidden=draw(2, rate, 1, spec.d_inner),
        ff_output=draw(3, rate, 1, d),
    )
    positional = jax.random.bernoulli(shared, 1 - rate, (1, d)) if rate else None
    return DropoutMasks(draw(4, rate, 1, d), positional, cell, draw(5, rate, queries, 1))
