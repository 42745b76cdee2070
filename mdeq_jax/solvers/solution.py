"""The result of a solver: `Solution`, with a `Status` for each sample."""

import enum
from typing import Any, NamedTuple

import jax


class Status(enum.IntEnum):
    """How a sample's solve ended.

    Attributes:
        CONVERGED: residual under `tol`.
        MAX_STEPS: `max_steps` or `step_budget` reached first.
        STALLED: no further progress; the residual is flat, or the solver has no next step.
        DIVERGED: start or residual not finite, or residual far above its first value.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    DIVERGED = 3


class Solution(NamedTuple):
    """The result of a solver, for `B` samples of `D` numbers each.

    Attributes:
        z: `[B, D]` iterate with the lowest residual (by `stop_mode`) of each sample; always
            finite.
        residual: `[B]` absolute residual |f(z) - z| at `z`; infinite if no residual was finite. In
            float32 or better, as all residuals.
        rel_residual: `[B]` relative residual |f(z) - z| / |f(z)| at `z`; the same, and the largest
            finite number if f(z) = 0 but z is not.
        steps: `[B]` int32, the step that gave `z`; 0 is the start.
        nfe: int32 scalar, evaluations of f on the batch: one for the start and one per step, until
            the last sample is finished. Under `jax.vmap` each element counts its own evaluations;
            f runs, masked, until the slowest element is finished.
        status: `[B]` int32, values of `Status`.
        abs_trace: `[max_steps, B]` absolute residual after each step; infinite if it is not
            finite, NaN once a sample is finished.
        rel_trace: `[max_steps, B]` the same for the relative residual.
        recorded: `[n, B, D]` best iterate of each sample after the n steps `record_at`. For steps
            after the end of a solve it is the last one. `()` without `record_at`.
        inverse: Broyden's `InverseEstimate` with `keep_inverse`, else `()`.
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
