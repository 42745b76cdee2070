"""Softmax over a large vocabulary in clusters: the frequent words, then groups of rare ones.

Grave et al. 2017 (1609.04309). The head holds the first cluster and one column for each tail:

    log p(w) = log head(w)                    for w in the first cluster,
    log p(w) = log head(column of i) + log tail_i(w)    for w in cluster i.

The column of cluster i is the i-th from the end, as in the released models. A training step never
holds the logits of all tokens over the vocabulary: each tail is computed for its own tokens only,
in blocks of a fixed size.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.layers.adaptive_embedding import Vocabulary
from mdeq_jax.layers.conv import normal_001

MAX_LOGITS = 2**25  # logits of one block: 128 MiB in float32
# A tail has few tokens, which fill few of so many blocks. Smaller blocks would gain nothing.
TAIL_BLOCKS, SMALLEST_TAIL_BLOCK = 16, 32


@flax.struct.dataclass
class TokenDistribution:
    """The distribution of the next token at each position, not yet evaluated.

    Attributes:
        hidden: `[B, T, d_model]` output of the model.
        tables: `[rows_i, d_i]` output embedding of each cluster.
        biases: `[rows_i]` of each cluster.
        projections: `[d_model, d_i]` of each cluster, or empty if there are none.
        cluster_table: `[tails, d_0]` output embeddings of the tails' columns; None for one cluster.
        cluster_bias: `[tails]`.
        cutoffs: first token of each tail.
        max_logits: most logits that one block of a loss holds.
    """

    hidden: jax.Array
    tables: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    projections: tuple[jax.Array, ...] = ()
    cluster_table: jax.Array | None = None
    cluster_bias: jax.Array | None = None
    cutoffs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    max_logits: int = flax.struct.field(pytree_node=False, default=MAX_LOGITS)

    def nll(self, targets: jax.Array) -> jax.Array:
        """-log p of each target: ids `[B, T]` to nats `[B, T]`, in the order of the positions."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])  # [N, d_model]
        labels = targets.reshape(-1)
        total = self._cluster_nll(0, hidden, self._head_labels(labels), None)
        for i in range(1, len(self.tables)):
            start, end = self._bounds(i)
            member = (labels >= start) & (labels < end)
            local = jnp.clip(labels - start, 0, end - start - 1)
            total = total + self._cluster_nll(i, hidden, local, member)
        return total.reshape(targets.shape)

    def log_probs(self) -> jax.Array:
        """`[B, T, vocabulary]`, for few positions: all logits are held at once."""
        head = jax.nn.log_softmax(self._logits(0, self.hidden))
        shortlist = self.tables[0].shape[0]
        parts = [head[..., :shortlist]]
        for i in range(1, len(self.tables)):
            column = self._column(i)
            tail = jax.nn.log_softmax(self._logits(i, self.hidden))
            parts.append(head[..., column : column + 1] + tail)
        return jnp.concatenate(parts, axis=-1)

    def _bounds(self, i: int) -> tuple[int, int]:
        start = self.cutoffs[i - 1]
        return start, start + self.tables[i].shape[0]

    def _column(self, i: int) -> int:
        """Column of tail i in the head: the i-th from the end."""
        return self.tables[0].shape[0] + len(self.cutoffs) - i

    def _head_labels(self, labels):
        tokens = labels
        for i in range(1, len(self.tables)):
            start, end = self._bounds(i)
            labels = jnp.where((tokens >= start) & (tokens < end), self._column(i), labels)
        return labels

    def _weights(self, i: int) -> tuple[jax.Array, jax.Array]:
        """Table and bias of cluster i; the head has its tails' columns."""
        if i or self.cluster_table is None or self.cluster_bias is None:
            return self.tables[i], self.biases[i]
        table = jnp.concatenate([self.tables[0], self.cluster_table])
        return table, jnp.concatenate([self.biases[0], self.cluster_bias])

    def _logits(self, i: int, hidden: jax.Array) -> jax.Array:
        """`[..., d_model]` to the logits of cluster i."""
        table, bias = self._weights(i)
        if self.projections:
            hidden = hidden @ self.projections[i]
        return hidden @ table.T + jnp.expand_dims(bias, tuple(range(hidden.ndim - 1)))

    def _cluster_nll(self, i, hidden, labels, member):
        """`[N]` -log p within cluster i; zero for tokens of others."""
        rows = self._weights(i)[0].shape[0]

        def nll(hidden, labels):
            logits = self._logits(i, hidden)
            target = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(logits, axis=1) - target

        block = max(1, self.max_logits // rows)
        if member is not None:
            usual = max(SMALLEST_TAIL_BLOCK, math.ceil(hidden.shape[0] / TAIL_BLOCKS))
            block = min(block, usual)
        return _in_blocks(nll, hidden, labels, member, block)


def _in_blocks(nll: Callable, hidden, labels, member, block: int) -> jax.Array:
    """`nll` of the members, a block of tokens at a time; zero for the others.

    The members come first, so that only the blocks with members are computed. The number of blocks
    is fixed, which keeps the shapes static. The backward pass computes the logits again.

    Args:
        nll: `[n, d]` states and `[n]` labels to `[n]` losses.
        hidden: `[N, d]`.
        labels: `[N]`, within the cluster.
        member: `[N]` bool; None: all tokens are members.
        block: tokens of one block.
    """
    num_tokens = hidden.shape[0]
    if num_tokens <= block:
        losses = nll(hidden, labels)
        return losses if member is None else jnp.where(member, losses, 0)
    order, count = jnp.arange(num_tokens), num_tokens
    if member is not None:
        order, count = jnp.argsort(~member, stable=True), jnp.sum(member)
    num_blocks = math.ceil(num_tokens / block)
    order = jnp.pad(order, (0, num_blocks * block - num_tokens), constant_values=num_tokens)
    order = order.reshape(num_blocks, block)

    @jax.checkpoint
    def step(_, index):
        rows = jnp.minimum(order[index], num_tokens - 1)
        losses = lax.cond(
            index * block < count,
            lambda: nll(hidden[rows], labels[rows]),
            lambda: jnp.zeros(block, hidden.dtype),
        )
        return None, losses

    _, losses = lax.scan(step, None, jnp.arange(num_blocks))
    losses = jnp.zeros(num_tokens, losses.dtype).at[order].set(losses, mode="drop")
    return losses if member is None else jnp.where(member, losses, 0)


class AdaptiveSoftmax(nn.Module):
    """Parameters of the output layer that the word embedding does not hold.

    Attributes:
        vocabulary: tokens and clusters.
        d_embed: width of the first cluster.
        d_model: width of the hidden state.
        ties_projection: for each cluster, whether its projection is the embedding's. Tied ones are
            no parameters of this module.
        projects: whether there are projections, of each cluster.
        cluster_init: initialiser of the tails' columns.
    """

    vocabulary: Vocabulary
    d_embed: int
    d_model: int
    ties_projection: tuple[bool, ...] = ()
    projects: bool = True
    cluster_init: Callable = normal_001

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        tables: tuple[jax.Array, ...],
        embedding_projections: tuple[jax.Array, ...] = (),
    ) -> TokenDistribution:
        """The distribution of the next token.

        Args:
            hidden: `[B, T, d_model]`.
            tables: those of the word embedding, which are the output embeddings too.
            embedding_projections: those of the word embedding.
        """
        vocabulary, zeros = self.vocabulary, nn.initializers.zeros
        num_tails = len(vocabulary.cutoffs)
        cluster_table = cluster_bias = None
        if num_tails:
            cluster_table = self.param(
                "cluster_table", self.cluster_init, (num_tails, self.d_embed)
            )
            cluster_bias = self.param("cluster_bias", zeros, (num_tails,))
        biases = tuple(
            self.param(f"bias{i}", zeros, (table.shape[0],)) for i, table in enumerate(tables)
        )
        if vocabulary.shares_table:
            tables, biases = (
                tuple(part[0][start:end] for start, end in vocabulary.bounds)
                for part in (tables, biases)
            )
        return TokenDistribution(
            hidden,
            tables,
            biases,
            self._projections(tables, embedding_projections),
            cluster_table,
            cluster_bias,
            vocabulary.cutoffs,
        )

    def _projections(self, tables, embedding_projections):
        """`[d_model, d_i]` of each cluster; a tied one is the embedding's transpose."""
        if not self.projects:
            return ()
        projections = []
        for i, table in enumerate(tables):
            if self.ties_projection and self.ties_projection[i]:
                shared = 0 if self.vocabulary.shares_table else i
                projection = embedding_projections[shared]
            else:
                shape = (table.shape[1], self.d_model)  # as the embedding's, which it may copy
                projection = self.param(f"projection{i}", normal_001, shape)
            projections.append(projection.T)
        return tuple(projections)
