"""Word embeddings whose width falls with the frequency of a word.

Baevski, Auli 2019 (1809.10853), section 3.1.
"""

from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers.conv import normal_001


class Vocabulary(NamedTuple):
    """Tokens 0, ..., size - 1 by falling frequency, cut into clusters.

    Attributes:
        size: number of tokens.
        cutoffs: first token of each cluster but the first.
        div_val: cluster i has the width `d_embed // div_val**i`. 1: all clusters share one table.
    """

    size: int
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First token of each cluster, and the first after it."""
        edges = (0, *self.cutoffs, self.size)
        return tuple(pairwise(edges))

    @property
    def shares_table(self) -> bool:
        """Whether all clusters share one table."""
        return self.div_val == 1

    def table_shapes(self, d_embed: int) -> tuple[tuple[int, int], ...]:
        """`(rows, width)` of each table."""
        if self.shares_table:
            return ((self.size, d_embed),)
        return tuple(
            (end - start, d_embed // self.div_val**i) for i, (start, end) in enumerate(self.bounds)
        )


class AdaptiveEmbedding(nn.Module):
    """One table a cluster, each with a projection to the model's width.

    With `div_val` 1 there is one table, with a projection only if `d_embed` is not `d_model`.

    Attributes:
        vocabulary: tokens and clusters.
        d_embed: width of the first cluster.
        d_model: width of the result.
    """

    vocabulary: Vocabulary
    d_embed: int
    d_model: int

    def setup(self):
        """Makes the parameters, which the softmax reads too."""
        shapes = self.vocabulary.table_shapes(self.d_embed)
        self.tables = tuple(
            self.param(f"table{i}", normal_001, shape) for i, shape in enumerate(shapes)
        )
        projects = not self.vocabulary.shares_table or self.d_embed != self.d_model
        self.projections = tuple(
            self.param(f"projection{i}", normal_001, (width, self.d_model))
            for i, (_, width) in enumerate(shapes)
            if projects
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Token ids `[B, T]` to embeddings `[B, T, d_model]`, times sqrt(d_model)."""
        if self.vocabulary.shares_table:
            embedded = jnp.asarray(self.tables[0])[tokens]
            if self.projections:
                embedded = embedded @ self.projections[0]
        else:
            parts = []
            for (start, end), table, projection in zip(
                self.vocabulary.bounds, self.tables, self.projections
            ):
                local = jnp.clip(tokens - start, 0, end - start - 1)
                rows = jnp.asarray(table)[local]  # [B, T, d_i]
                member = (tokens >= start) & (tokens < end)
                parts.append(jnp.where(member[..., None], rows @ projection, 0))
            embedded = sum(parts)
        return embedded * self.d_model**0.5
