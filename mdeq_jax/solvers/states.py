"""What a solver's loop carries, and what its stages hand on; see `stages`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Step(NamedTuple):
    """What an algorithm makes the next iterates from.

    Attributes:
        z: `[B, D]` iterates.
        fz: `[B, D]` f(z).
        gz: `[B, D]` f(z) - z, in float32 or better; computed in the pass over memory that reads z
            and f(z) anyway.
        active: `[B]` bool, the samples that are not finished.
    """

    z: jax.Array
    fz: jax.Array
    gz: jax.Array
    active: jax.Array


class Algorithm(NamedTuple):
    """What distinguishes one solver from another.

    Attributes:
        init: z0 `[B, D]` -> the algorithm's state.
        update: (state, number of the step, `Step`) -> (state, next z `[B, D]`, stuck `[B]` bool).
            Samples that are stuck have no next iterate and end here. They and those that are not
            active keep their z. Only active samples may be stuck.
    """

    init: Callable[[jax.Array], Any]
    update: Callable[[Any, jax.Array, Step], tuple[Any, jax.Array, jax.Array]]


class Loop(NamedTuple):
    """What the loop carries.

    Attributes:
        step: number of the next step.
        z, fz, gz: `[B, D]` as in `Step`.
        best: `[B, D]` best iterate of each sample.
        best_abs, best_rel: `[B]` its residuals.
        best_step: `[B]` the step that gave it.
        status: `[B]` values of `Status`, or `ACTIVE`.
        abs_trace, rel_trace: `[max_steps, B]` residuals after each step.
        recorded: `[n, B, D]` best iterates after the steps `record_at`, or `()`.
        algorithm: the algorithm's state.
    """

    step: jax.Array
    z: jax.Array
    fz: jax.Array
    gz: jax.Array
    best: jax.Array
    best_abs: jax.Array
    best_rel: jax.Array
    best_step: jax.Array
    status: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array
    recorded: Any
    algorithm: Any


class Residuals(NamedTuple):
    """The residuals of iterates, as `norms.residuals` gives them.

    Attributes:
        absolute, relative: `[B]`, infinite if not finite.
        finite: `[B]` bool, whether they are finite.
    """

    absolute: jax.Array
    relative: jax.Array
    finite: jax.Array


class Proposal(NamedTuple):
    """The next iterates, before f is evaluated at them.

    Attributes:
        algorithm: the algorithm's state.
        z: `[B, D]`.
        active: `[B]` bool, not finished before this step.
        stuck: `[B]` bool, active but without a next iterate.
    """

    algorithm: Any
    z: jax.Array
    active: jax.Array
    stuck: jax.Array


class Evaluation(NamedTuple):
    """The next iterates and their residuals.

    Attributes:
        count: number of steps made, this one included.
        algorithm: the algorithm's state.
        z, fz: `[B, D]`.
        active: `[B]` bool, not finished before this step.
        stuck: `[B]` bool, active but without a next iterate.
        moving: `[B]` bool, active and not stuck.
        abs_residual, rel_residual: `[B]`, infinite if not finite.
        finite: `[B]` bool, whether they are finite.
        better: `[B]` bool, whether the iterate is the sample's best so far.
        abs_trace, rel_trace: `[max_steps, B]` residuals up to this step.
    """

    count: jax.Array
    algorithm: Any
    z: jax.Array
    fz: jax.Array
    active: jax.Array
    stuck: jax.Array
    moving: jax.Array
    abs_residual: jax.Array
    rel_residual: jax.Array
    finite: jax.Array
    better: jax.Array
    abs_trace: jax.Array
    rel_trace: jax.Array


class Judgement(NamedTuple):
    """Which samples end with this step.

    Attributes:
        ended: `[B]` bool.
        outcome: `[B]` values of `Status`, for those that ended.
        diverged: `[B]` bool.
        objective: `[B]` the residual that counts.
    """

    ended: jax.Array
    outcome: jax.Array
    diverged: jax.Array
    objective: jax.Array
