"""A DEQ-Transformer: embedding, equilibrium of one cell, adaptive softmax, memory."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import FixedPointProblem
from mdeq_jax.layers import DenseWeights, apply_dense, dropout, sample_keys
from mdeq_jax.layers.adaptive_embedding import AdaptiveEmbedding
from mdeq_jax.layers.adaptive_softmax import AdaptiveSoftmax, TokenDistribution
from mdeq_jax.layers.relative_position import distance_features, inverse_frequencies
from mdeq_jax.models.deq_transformer.cell import (
    TransformerCell,
    apply_cell,
    attention_mask,
    condition,
)
from mdeq_jax.models.deq_transformer.masks import NO_DROPOUT, DropoutMasks, draw_masks
from mdeq_jax.models.language import (
    EquilibriumSolver,
    LanguageOutput,
    Segment,
    as_segment,
    keep_last,
    regularise,
    run_problem,
)
from mdeq_jax.models.output import ForwardOptions
from mdeq_jax.solvers import Solution


class Memory(NamedTuple):
    """States and injections of the positions before a segment; L is `mem_len`.

    Attributes:
        z: `[B, L, d_model]` states, the latest last.
        injection: `[B, L, 3 d_model]` injections as they were computed then, dropout included.
        filled: `[B]` int32, how many of the L positions, counted from the last, hold a state.
    """

    z: jax.Array
    injection: jax.Array
    filled: jax.Array


class DEQTransformer(EquilibriumSolver, nn.Module):
    """Deep equilibrium Transformer (Bai, Kolter, Koltun 2019, 1909.01377).

    Attributes:
        embedding: token ids to embeddings; its tables are the output embeddings too.
        cell: parameters of the equilibrium cell.
        softmax: parameters of the output layer.
        f_solver: forward solver, settings bound.
        gradient: one of `mdeq_jax.implicit.GRADIENTS`, settings bound.
        mem_len: positions of memory.
        local_size: how many keys a query attends to at most.
        frequencies: of the distance features; None: `inverse_frequencies(d_model)`.
        num_layers: applications of the cell that always replace the solver: the weight-tied
            Transformer without an equilibrium. None: the equilibrium.
    """

    embedding: AdaptiveEmbedding
    cell: TransformerCell
    softmax: AdaptiveSoftmax
    f_solver: Callable[..., Solution]
    gradient: Callable[..., jax.Array]
    mem_len: int
    local_size: int
    frequencies: tuple[float, ...] | None = None
    num_layers: int | None = None

    def setup(self):
        """Makes the injection's layer, which the original does not weight-normalise."""
        d = self.cell.spec.d_model
        self.injection = DenseWeights((d, 3 * d))

    def __call__(
        self,
        tokens: jax.Array | Segment,
        *,
        memory: Memory | None = None,
        train: bool = False,
        forward: ForwardOptions | None = None,
        z0: jax.Array | None = None,
        masks: DropoutMasks | None = None,
    ) -> LanguageOutput:
        """Runs the model on one segment.

        Args:
            tokens: `[B, T]` int ids; or a `Segment`, which brings its own memory.
            memory: `memory` of the output for the segment before; None: there is none.
            train: use dropout (random key "dropout") and make the output differentiable.
            forward: see `ForwardOptions`; None: its defaults.
            z0: `[B, T, d_model]` start of the solver; None: zeros.
            masks: what dropout keeps in training; None: drawn.

        Raises:
            ValueError: `forward.pretraining_layers` below 1.
        """
        tokens, memory = as_segment(tokens, memory)
        forward = ForwardOptions() if forward is None else forward
        if self.num_layers is not None:
            forward = forward._replace(pretraining_layers=self.num_layers, with_jacobian=False)
        if self.is_initializing():
            forward = forward._replace(pretraining_layers=1)  # parameters, outside a solver's loop
        if train and masks is None:
            masks = self._draw_masks(tokens, memory, forward.first_sample)
        masks = masks if train and masks is not None else NO_DROPOUT
        problem, injection = self.problem(tokens, memory=memory, z0=z0, masks=masks)
        z, solved, solution = run_problem(problem, self.solve, forward, train=train)
        jacobian = regularise(problem, solved, forward, self._keys("jacobian", tokens, forward))
        distribution = self._distribution(z, masks.core_output)
        return LanguageOutput(
            distribution, solution, z, jacobian, self._remember(memory, z, injection)
        )

    def problem(
        self,
        tokens: jax.Array,
        *,
        memory: Memory | None = None,
        z0: jax.Array | None = None,
        masks: DropoutMasks = NO_DROPOUT,
    ) -> tuple[FixedPointProblem, jax.Array]:
        """The fixed-point problem of one segment, and its injection `[B, T, 3 d_model]`."""
        spec, (batch, length) = self.cell.spec, tokens.shape
        weights, injection = self.cell(), self.inject(tokens, mask=masks.word_embedding)
        if memory is None:
            memory = self._empty_memory(batch, 0, injection.dtype)
        span = memory.z.shape[1] + length
        frequencies = self.frequencies or inverse_frequencies(spec.d_model)
        features = distance_features(span, frequencies, injection.dtype)
        if masks.positional is not None:
            features = dropout(features, masks.positional, spec.dropout)
        x = condition(
            spec,
            weights,
            injection,
            lax.stop_gradient(memory.z),
            lax.stop_gradient(memory.injection),
            features,
            attention_mask(length, memory.z.shape[1], memory.filled, self.local_size),
            masks.cell,
        )
        start = self.zero_state(tokens, injection.dtype) if z0 is None else z0
        return FixedPointProblem(partial(apply_cell, spec), weights, x, start), injection

    def inject(self, tokens: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Token ids `[B, T]` to the injection `[B, T, 3 d_model]` of queries, keys and values."""
        embedded = self.embedding(tokens)
        if mask is not None:
            embedded = dropout(embedded, mask, self.cell.spec.dropout)
        return apply_dense(embedded, self.injection())

    def read_out(self, z: jax.Array, *, train: bool = False) -> TokenDistribution:
        """The distribution of the next token at a state, without dropout."""
        del train  # nothing but the dropout of a forward pass depends on it
        return self._distribution(z, None)

    def _distribution(self, z: jax.Array, mask: jax.Array | None) -> TokenDistribution:
        """The same with dropout: `mask` `[B, T, 1]` drops positions."""
        if mask is not None:
            z = dropout(z, mask, self.cell.spec.dropout)
        return self.softmax(z, self.embedding.tables, self.embedding.projections)

    @nn.nowrap
    def shortest_segment(self, length: int) -> int:
        """How short segments may be to see as far back as segments of `length` do.

        The memory holds equilibria, and so do the positions of a segment. Without an equilibrium
        these attend to the states of their own layer instead.
        """
        return 1 if self.num_layers is None and self.mem_len >= length else length

    @nn.nowrap
    def fixed_point_problem(
        self, variables: dict, inputs: jax.Array | Segment
    ) -> FixedPointProblem:
        """The problem that evaluation mode solves for token ids `[B, T]`, or for a `Segment`."""
        tokens, memory = as_segment(inputs)
        return self.apply(variables, tokens, memory=memory, method="problem")[0]

    @nn.nowrap
    def empty_memory(self, batch: int, dtype: jnp.dtype | None = None) -> Memory:
        """The memory before a first segment, in JAX's default type unless `dtype` is given."""
        return self._empty_memory(batch, self.mem_len, dtype or jnp.result_type(float))

    @nn.nowrap
    def zero_state(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """A state of zeros, in float32 or `dtype` if that is wider."""
        return jnp.zeros((*tokens.shape, self.cell.spec.d_model), _state_dtype(dtype))

    @nn.nowrap
    def _empty_memory(self, batch: int, length: int, dtype) -> Memory:
        d = self.cell.spec.d_model
        return Memory(
            jnp.zeros((batch, length, d), _state_dtype(dtype)),
            jnp.zeros((batch, length, 3 * d), dtype),
            jnp.zeros((batch,), jnp.int32),
        )

    @nn.nowrap
    def _remember(self, memory: Memory | None, z: jax.Array, injection: jax.Array) -> Memory:
        """The last `mem_len` positions of memory and segment, without a gradient."""
        batch, length = z.shape[:2]
        if memory is None:
            memory = self._empty_memory(batch, 0, injection.dtype)

        def joined(old, new):
            both = jnp.concatenate([old.astype(new.dtype), new], axis=1)
            return lax.stop_gradient(keep_last(both, self.mem_len))

        return Memory(
            joined(memory.z, z),
            joined(memory.injection, injection),
            jnp.minimum(memory.filled + length, self.mem_len),
        )

    def _draw_masks(self, tokens, memory, first_sample) -> DropoutMasks:
        spec, (batch, length) = self.cell.spec, tokens.shape
        if spec.dropout == spec.dropatt == 0:
            return NO_DROPOUT
        span = length + (0 if memory is None else memory.z.shape[1])
        return draw_masks(self.make_rng("dropout"), first_sample, spec, (batch, length, span))

    def _keys(self, name: str, tokens, forward: ForwardOptions):
        """Returns a function that makes one random key a sample."""
        return lambda: sample_keys(self.make_rng(name), forward.first_sample, tokens.shape[0])


def _state_dtype(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
