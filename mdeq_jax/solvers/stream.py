"""Continuous batching: a fixed number of slots, through which any number of samples pass.

The ordinary loop of `loop` runs until its slowest sample is finished. Here a sample that is
finished hands its state out, and its slot takes the next input, within one compiled loop. Servers
of language models schedule requests in this way (Yu et al. 2022, Orca, OSDI). Every sample gets
the answer of a separate solve, to rounding: except in f, each slot is a loop of one sample.

A slot that takes an input evaluates its start in the same call of f in which the other slots make
their next step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.parallel import varying_like
from mdeq_jax.solvers import stages
from mdeq_jax.solvers.norms import residuals
from mdeq_jax.solvers.slots import Left, Slots, Waiting, drain, exchange, untaken
from mdeq_jax.solvers.solution import Solution, Status
from mdeq_jax.solvers.states import Algorithm, Loop, Proposal, Residuals
from mdeq_jax.solvers.stopping import ACTIVE, Rules

PyTree = Any


class Settings(NamedTuple):
    """A solver as a stream runs it; the fields are those of `iterate`."""

    algorithm: Algorithm
    max_steps: int
    tol: float | jax.Array
    stop_mode: str


def settings_of(f_solver: Callable[..., Solution], z: jax.Array | jax.ShapeDtypeStruct) -> Settings:
    """What a solver of `mdeq_jax.solvers`, its settings bound, would run on a start like `z`."""

    def capture(f, z0, algorithm, *, max_steps, tol, stop_mode, **others):
        del f, z0, others
        return Settings(algorithm, max_steps, tol, stop_mode)

    settings: Any = f_solver(None, z, run=capture)
    return settings


def empty_slots(solver: Settings, x: PyTree, z: jax.Array) -> Slots:
    """Slots without samples.

    Args:
        solver: of `settings_of`, for a start like `z`.
        x: inputs of the shapes to come, leaves `[S, ...]`; their values do not matter.
        z: `[S, D]`, the same for the starts.
    """
    z = jnp.zeros_like(z)[:, None]
    residual = jnp.zeros(z.shape[:2], jnp.promote_types(z.dtype, jnp.float32))
    measured = Residuals(residual, residual, residual == 0)

    def begin(z, measured):
        rules = Rules(solver.tol, solver.stop_mode, measured.absolute, measured.relative)
        return stages.begin(z, z, measured, rules, solver.max_steps)

    loop = jax.vmap(begin)(z, measured)
    loop = loop._replace(algorithm=jax.vmap(solver.algorithm.init)(z))
    never = jnp.zeros(z.shape[0], bool)
    return Slots(
        nfe=jnp.int32(0),
        loop=loop,
        first_abs=residual,
        first_rel=residual,
        fresh=never,
        usable=never,
        x=jax.tree.map(jnp.zeros_like, x),
        source=jnp.zeros(z.shape[0], jnp.int32),
    )


def advance(
    f: Callable[[jax.Array, PyTree], jax.Array],
    solver: Settings,
    slots: Slots,
    x: PyTree,
    z0: jax.Array,
    *,
    count: int | jax.Array,
    step_budget: int | jax.Array | None = None,
) -> tuple[Slots, Left]:
    """Solves until the slots have taken every input, or with `count=0` until they are finished.

    The sample that an input replaces leaves in the row of that input. So the result has as many
    rows as there are inputs: samples that are finished, in any order, slots that were empty and,
    from row `count` on, inputs that were never taken. With `count=0` the samples of all slots leave
    in the first S rows, and the slots are empty.

    Args:
        f: `[S, D]` and inputs of S samples to `[S, D]`, each row a function of its own row.
        solver: of `settings_of`.
        slots: of `empty_slots`, or of the last call.
        x: inputs of B samples, leaves `[B, ...]`.
        z0: `[B, D]` their starts. B is at least S.
        count: number of inputs to take, the first ones; may be traced.
        step_budget: most steps of a sample, if fewer than the solver's; may be traced.

    Returns:
        The slots, and the samples that left. `source` in both is the place where a sample was
        before the call: its slot, or S plus its row among the inputs.
    """
    size, limit = slots.source.shape[0], jnp.int32(solver.max_steps)
    if step_budget is not None:
        limit = jnp.minimum(limit, step_budget)
    slots = slots._replace(source=jnp.arange(size, dtype=jnp.int32))
    usable = jnp.isfinite(z0).all(axis=1)
    waiting = Waiting(x, jnp.where(usable[:, None], z0, 0), usable)
    left = untaken(waiting, solver.max_steps, first_source=size)
    blank = solver.algorithm.init(jnp.zeros_like(z0[:1]))
    count = jnp.asarray(count, jnp.int32)
    slots, left, taken, count, limit = varying_like(
        (slots, x, z0, count, limit), (slots, left, jnp.int32(0), count, limit)
    )
    draining = count == 0

    def unfinished(carry):
        slots, _, taken = carry
        return (taken < count) | (draining & jnp.any(slots.active))

    def step(carry):
        slots, left, taken = carry
        free = jnp.sum(~slots.active, dtype=jnp.int32)
        after = jnp.minimum(taken + free, count)
        slots, left = exchange(slots, left, waiting, blank, taken, after)
        return _tick(f, solver, slots, limit), left, after

    slots, left, _ = lax.while_loop(unfinished, step, (slots, left, taken))
    return drain(slots, left, jnp.where(draining, jnp.int32(size), 0))


def _tick(f, solver: Settings, slots: Slots, limit: jax.Array) -> Slots:
    """One evaluation of f: the start of samples that are new, a step of the others."""
    # A sample that is new is not active yet, and keeps its z.
    status = jnp.where(slots.fresh[:, None], jnp.int32(Status.MAX_STEPS), slots.loop.status)
    loop = slots.loop._replace(status=status)
    proposal = jax.vmap(partial(stages.propose, solver.algorithm))(loop)
    z = proposal.z[:, 0]
    fz = stages.stored(f(z, slots.x))
    measured = Residuals(*residuals(z, fz))
    fz, measured = jax.tree.map(lambda x: x[:, None], (fz, measured))
    first_abs, first_rel = (
        jnp.where(slots.fresh[:, None], now, before)
        for now, before in (
            (measured.absolute, slots.first_abs),
            (measured.relative, slots.first_rel),
        )
    )
    after = jax.vmap(partial(_after, solver, limit))(
        loop, proposal, fz, measured, first_abs, first_rel, slots.fresh, slots.usable
    )
    return slots._replace(
        nfe=slots.nfe + 1,
        loop=after,
        first_abs=first_abs,
        first_rel=first_rel,
        fresh=jnp.zeros_like(slots.fresh),
    )


def _after(
    solver: Settings,
    limit: jax.Array,
    loop: Loop,
    proposal: Proposal,
    fz: jax.Array,
    measured: Residuals,
    first_abs: jax.Array,
    first_rel: jax.Array,
    fresh: jax.Array,
    usable: jax.Array,
) -> Loop:
    """The loop of one slot after f is evaluated."""
    rules = Rules(solver.tol, solver.stop_mode, first_abs, first_rel)
    evaluation = stages.assess(loop, proposal, fz, measured, rules)
    stepped = stages.record(loop, evaluation, stages.judge(evaluation, rules), ())
    stepped = stepped._replace(step=jnp.where(proposal.active[0], evaluation.count, loop.step))
    start = measured._replace(finite=measured.finite & usable)
    begun = stages.begin(proposal.z, fz, start, rules, solver.max_steps)
    state = stepped.algorithm
    after = jax.tree.map(
        lambda one, other: jnp.where(fresh, one, other), begun, stepped._replace(algorithm=())
    )
    ended = (after.status == ACTIVE) & (after.step >= limit)
    status = jnp.where(ended, Status.MAX_STEPS, after.status).astype(jnp.int32)
    return after._replace(status=status, algorithm=state)
