"""What a solver returns: `Solution`, with a `Status` for each sample."""

import enum
from typing import Any, NamedTuple

import jax


class Status(enum.IntEnum):
    """How a sample's solve ended."""

    CONVERGED = 0  # residual under `tol`
    MAX_STEPS = 1  # `max_steps` or `step_budget` reached first
    STALLED = 2  # no further progress: residual flat, or the solver has no next step
    DIVERGED = 3  # start or residual not finite, or residual far above its first value


class Solution(NamedTuple):
    """What a solver returns. `B` samples, `D` numbers each.

    Attributes:
        z: `[B, D]` iterate with the lowest residual (by `stop_mode`) of each sample; always
            finite.
        residual: `[B]` absolute residual |f(z) - z| at `z`; infinite where no finite one was met.
        rel_residual: `[B]` relative residual |f(z) - z| / (|f(z)| + 1e-9) at `z`; the same.
        steps: `[B]` int32, the step that gave `z`; 0 is the start.
        nfe: int32 scalar, evaluations of `f` on the batch: one for the start and one a step, until
            the last sample is done. Under `jax.vmap` each element counts its own; `f` runs, masked,
            until the slowest element is done.
        status: `[B]` int32, values of `Status`.
        abs_trace: `[max_steps, B]` absolute residual after each step, infinite where it is no
            number; NaN once a sample is done.
        rel_trace: `[max_steps, B]` the same for the relative residual.
        recorded: `[n, B, D]` best iterate of each sample after the n steps `record_at`, those that
            a solve did not come to like its last; `()` where none were asked for.
        inverse: Broyden's `InverseEstimate`, where it was asked for; else `()`.
    """

    z: jax.Array
    residual: jax.Array
    rel_residual: jax.Array
    steps: jax.Array
    nfe: jax.Array
    status: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array
    recorded: jax.Array | tuple = ()
    inverse: Any = ()
