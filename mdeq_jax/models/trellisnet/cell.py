"""The equilibrium cell of a DEQ-TrellisNet: a gated causal convolution with a cell state.

Bai, Kolter, Koltun 2019, Trellis networks (1810.06682), equations (4) to (6), as an equilibrium:
1909.01377, section 4.1. The computation is the pure function `apply_cell(spec, weights, z, x)`.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import Kernel, dropout
from mdeq_jax.layers.causal_conv import causal_conv
from mdeq_jax.layers.conv import normal_001


class CellSpec(NamedTuple):
    """What is fixed about a cell.

    Attributes:
        hidden: H, width of the hidden state and of the cell state.
        kernel_size: taps of the convolution.
        dilation: distance between them.
        weight_norm: weight-normalised kernel.
        dropouth: rate of the variational dropout of the hidden state, where there is a mask.
        dtype: type of the computation; None: that of weights and state.
    """

    hidden: int
    kernel_size: int = 2
    dilation: int = 1
    weight_norm: bool = True
    dropouth: float = 0.0
    dtype: jnp.dtype | None = None


class CellInput(NamedTuple):
    """What a cell is conditioned on.

    Attributes:
        injection: `[B, T, 4 H]`, added to the gates.
        history: `[B, 1, 2 H]` state before the segment; zeros in front of a first one.
        hidden_mask: `[B, 1, H]` bool, which hidden features dropout keeps; None: all.
    """

    injection: jax.Array
    history: jax.Array
    hidden_mask: jax.Array | None = None


class TrellisCell(nn.Module):
    """Parameters of the cell; calling it gives the weights that `apply_cell` takes."""

    spec: CellSpec

    @nn.compact
    def __call__(self) -> dict:
        """Kernel `[k, H, 4 H]` and bias `[4 H]`, in the type of the computation."""
        spec = self.spec
        shape = (spec.kernel_size, spec.hidden, 4 * spec.hidden)
        kernel = Kernel(shape, spec.weight_norm, normal_001, name="weight")()
        weights = {"kernel": kernel, "bias": self.param("bias", normal_001, shape[-1:])}
        if spec.dtype is not None:
            weights = {name: w.astype(spec.dtype) for name, w in weights.items()}
        return weights


def convolve(spec: CellSpec, weights: dict, z: jax.Array, x: CellInput) -> jax.Array:
    """The convolution `[B, T, 4 H]` of the hidden state, before the injection is added."""
    hidden, history = z[..., : spec.hidden], x.history[..., : spec.hidden].astype(z.dtype)
    if x.hidden_mask is not None:
        hidden, history = (dropout(h, x.hidden_mask, spec.dropouth) for h in (hidden, history))
    return (
        causal_conv(hidden, weights["kernel"], history, spec.dilation) + weights["bias"][None, None]
    )


@partial(jax.jit, static_argnums=0)
def apply_cell(spec: CellSpec, weights: dict, z: jax.Array, x: CellInput) -> jax.Array:
    """One application of the cell, z <- f(z; x).

    The cell state moves by one position, whatever the kernel and the dilation.

    Args:
        spec: of the cell.
        weights: as `TrellisCell` gives them.
        z: state `[B, T, 2 H]`, hidden state first, then cell state.
        x: injection, history and dropout mask.

    Returns:
        The new state, in the shape and type of `z`.
    """
    dtype = z.dtype if spec.dtype is None else spec.dtype
    state = z.astype(dtype)
    gates = convolve(spec, weights, state, x) + x.injection.astype(dtype)
    enter, leave, candidate, keep = jnp.split(gates, 4, axis=-1)  # i, o, g, f; [B, T, H] each
    earlier = jnp.concatenate(
        [x.history[..., spec.hidden :].astype(dtype), state[:, :-1, spec.hidden :]], axis=1
    )
    cell = nn.sigmoid(keep) * earlier + nn.sigmoid(enter) * jnp.tanh(candidate)
    hidden = nn.sigmoid(leave) * jnp.tanh(cell)
    return jnp.concatenate([hidden, cell], axis=-1).astype(z.dtype)
