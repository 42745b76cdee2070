"""A DEQ-TrellisNet: embedding, equilibrium of one gated convolution, split softmax, history."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit import FixedPointProblem
from mdeq_jax.layers import Kernel, dropout, dropout_mask, sample_keys, torch_uniform
from mdeq_jax.layers.adaptive_softmax import AdaptiveSoftmax, TokenDistribution
from mdeq_jax.layers.causal_conv import causal_conv
from mdeq_jax.models.language import (
    EquilibriumSolver,
    LanguageOutput,
    Segment,
    as_segment,
    regularise,
    run_problem,
)
from mdeq_jax.models.output import ForwardOptions
from mdeq_jax.models.trellisnet.cell import CellInput, TrellisCell, apply_cell
from mdeq_jax.solvers import Solution


class Memory(NamedTuple):
    """The state before a segment.

    Attributes:
        z: `[B, 1, 2 H]` the last position's state; zeros in front of a first segment.
    """

    z: jax.Array


class DropoutMasks(NamedTuple):
    """What dropout keeps, as bool; None where nothing is dropped.

    Attributes:
        word_embedding: `[B, 1, ninp]`.
        hidden: `[B, 1, H]`.
        output: `[B, 1, nout]`.
    """

    word_embedding: jax.Array | None = None
    hidden: jax.Array | None = None
    output: jax.Array | None = None


NO_DROPOUT = DropoutMasks()


class Embedding(nn.Module):
    """One table of word embeddings, which are the output embeddings too.

    Attributes:
        vocab_size: rows.
        width: columns.
        last_row_is_padding: whether the last row gets no gradient as an input. The original looks
            tokens up with the padding index -1.
    """

    vocab_size: int
    width: int
    last_row_is_padding: bool = False

    def setup(self):
        """Makes the table, which the softmax reads too."""
        # U(-0.1, 0.1), as PyTorch's default for a fan-in of 100
        self.table0 = self.param("table0", torch_uniform(100), (self.vocab_size, self.width))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Token ids `[B, T]` to embeddings `[B, T, width]`."""
        embedded = jnp.asarray(self.table0)[tokens]
        if not self.last_row_is_padding:
            return embedded
        last = (tokens == self.vocab_size - 1)[..., None]
        return jnp.where(last, lax.stop_gradient(embedded), embedded)

    @property
    def tables(self) -> tuple[jax.Array]:
        """The tables that the softmax reads."""
        return (self.table0,)


class Injection(nn.Module):
    """Causal convolution of the embeddings; the columns before every segment are zeros.

    Attributes:
        shape: `(k, ninp, 4 H)` of the kernel.
        weight_norm: whether it is weight-normalised.
    """

    shape: tuple[int, int, int]
    weight_norm: bool

    @nn.compact
    def __call__(self, embedded: jax.Array) -> jax.Array:
        """`[B, T, ninp]` to `[B, T, 4 H]`."""
        init = torch_uniform(self.shape[0] * self.shape[1])
        kernel = Kernel(self.shape, self.weight_norm, init, name="weight")()
        bias = self.param("bias", init, self.shape[-1:])
        return causal_conv(embedded, kernel) + bias[None, None]


class DEQTrellisNet(EquilibriumSolver, nn.Module):
    """Deep equilibrium trellis network (Bai, Kolter, Koltun 2019, 1909.01377).

    Attributes:
        embedding: token ids to embeddings.
        injection: embeddings to the injection of the gates.
        cell: parameters of the equilibrium cell.
        softmax: parameters of the output layer.
        f_solver: forward solver, settings bound.
        gradient: one of `mdeq_jax.implicit.GRADIENTS`, settings bound.
        nout: width of the output: the last features of the hidden state.
        dropouti: rate of the dropout of embedding features.
        dropout: rate of the dropout of output features.
    """

    embedding: Embedding
    injection: Injection
    cell: TrellisCell
    softmax: AdaptiveSoftmax
    f_solver: Callable[..., Solution]
    gradient: Callable[..., jax.Array]
    nout: int
    dropouti: float = 0.0
    dropout: float = 0.0

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
            z0: `[B, T, 2 H]` start of the solver; None: zeros.
            masks: what dropout keeps in training; None: drawn.

        Raises:
            ValueError: `forward.pretraining_layers` below 1.
        """
        tokens, memory = as_segment(tokens, memory)
        forward = ForwardOptions() if forward is None else forward
        if self.is_initializing():
            forward = forward._replace(pretraining_layers=1)  # parameters, outside a solver's loop
        if train and masks is None:
            masks = self._draw_masks(tokens.shape[0], forward.first_sample)
        masks = masks if train and masks is not None else NO_DROPOUT
        problem = self.problem(tokens, memory=memory, z0=z0, masks=masks)
        z, solved, solution = run_problem(problem, self.solve, forward, train=train)
        jacobian = regularise(
            problem,
            solved,
            forward,
            lambda: sample_keys(self.make_rng("jacobian"), forward.first_sample, tokens.shape[0]),
        )
        distribution = self._distribution(z, masks.output)
        memory = Memory(lax.stop_gradient(z[:, -1:]))
        return LanguageOutput(distribution, solution, z, jacobian, memory)

    def problem(
        self,
        tokens: jax.Array,
        *,
        memory: Memory | None = None,
        z0: jax.Array | None = None,
        masks: DropoutMasks = NO_DROPOUT,
    ) -> FixedPointProblem:
        """The fixed-point problem of one segment."""
        weights, injection = self.cell(), self.inject(tokens, mask=masks.word_embedding)
        if memory is None:
            memory = self.empty_memory(tokens.shape[0], injection.dtype)
        x = CellInput(injection, lax.stop_gradient(memory.z), masks.hidden)
        start = self.zero_state(tokens, injection.dtype) if z0 is None else z0
        return FixedPointProblem(partial(apply_cell, self.cell.spec), weights, x, start)

    def inject(self, tokens: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Token ids `[B, T]` to the injection `[B, T, 4 H]` of the gates."""
        embedded = self.embedding(tokens)
        if mask is not None:
            embedded = dropout(embedded, mask, self.dropouti)
        return self.injection(embedded)

    def read_out(self, z: jax.Array, *, train: bool = False) -> TokenDistribution:
        """The distribution of the next token at a state, without dropout."""
        del train  # nothing but the dropout of a forward pass depends on it
        return self._distribution(z, None)

    def _distribution(self, z: jax.Array, mask: jax.Array | None) -> TokenDistribution:
        """The same with dropout: `mask` `[B, 1, nout]` drops features."""
        hidden = self.cell.spec.hidden
        output = z[..., hidden - self.nout : hidden]
        if mask is not None:
            output = dropout(output, mask, self.dropout)
        return self.softmax(output, self.embedding.tables)

    @nn.nowrap
    def shortest_segment(self, length: int) -> int:
        """How short segments may be to see what segments of `length` do.

        The injection of a segment does not see the tokens before it.
        """
        return 1 if self.injection.shape[0] == 1 else length

    @nn.nowrap
    def fixed_point_problem(
        self, variables: dict, inputs: jax.Array | Segment
    ) -> FixedPointProblem:
        """The problem that evaluation mode solves for token ids `[B, T]`, or for a `Segment`."""
        tokens, memory = as_segment(inputs)
        problem: Any = self.apply(variables, tokens, memory=memory, method="problem")
        return problem

    @nn.nowrap
    def empty_memory(self, batch: int, dtype: jnp.dtype | None = None) -> Memory:
        """The memory before a first segment, in JAX's default type unless `dtype` is given."""
        dtype = jnp.promote_types(dtype or jnp.result_type(float), jnp.float32)
        return Memory(jnp.zeros((batch, 1, 2 * self.cell.spec.hidden), dtype))

    @nn.nowrap
    def zero_state(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """A state of zeros, in float32 or `dtype` if that is wider."""
        dtype = jnp.promote_types(dtype, jnp.float32)
        return jnp.zeros((*tokens.shape, 2 * self.cell.spec.hidden), dtype)

    def _draw_masks(self, batch: int, first_sample) -> DropoutMasks:
        hidden, rates = (
            self.cell.spec.hidden,
            (self.dropouti, self.cell.spec.dropouth, self.dropout),
        )
        if not any(rates):
            return NO_DROPOUT
        samples = sample_keys(self.make_rng("dropout"), first_sample, batch)
        masks = []
        for number, (rate, width) in enumerate(
            zip(rates, (self.embedding.width, hidden, self.nout))
        ):
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(samples, number)
            masks.append(dropout_mask(keys, rate, (batch, 1, width)) if rate else None)
        return DropoutMasks(*masks)
