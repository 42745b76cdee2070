"""Ten thousand random affine maps through every solver: no NaN, and no false report.

Every batch has the same shape, so that a handful of compilations do: a map of d dimensions has
zero rows and columns beyond d, and places that are left over in a batch hold zero maps.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdeq_jax.solvers import SOLVERS, Status, anderson, broyden, fixed_point_iteration
from mdeq_jax.solvers.stopping import DIVERGED_ABS, DIVERGED_REL
from tests.helpers.sample_maps import Maps, compiled

BATCH, SIZE, GROUP, MAX_STEPS = 128, 12, 16, 40
PROBLEMS = 10_000

FLOAT32 = dict(tol=1e-4, max_steps=MAX_STEPS)
FLOAT64 = dict(tol=1e-9, max_steps=MAX_STEPS)
# Each is compiled once. What a solver can be set to is spread over the two types.
VARIANTS = {
    "float32": [
        (broyden, dict(stop_mode="rel", **FLOAT32)),
        (broyden, dict(stop_mode="abs", history_dtype="bfloat16", tol=1e-4, max_steps=12)),
        (anderson, dict(stop_mode="rel", **FLOAT32)),
        (fixed_point_iteration, dict(stop_mode="abs", **FLOAT32)),
    ],
    "float64": [
        (broyden, dict(stop_mode="abs", **FLOAT64)),
        (anderson, dict(stop_mode="abs", beta=0.8, **FLOAT64)),
        (anderson, dict(stop_mode="rel", m=3, **FLOAT64)),
        (fixed_point_iteration, dict(stop_mode="rel", tau=0.7, **FLOAT64)),
    ],
}


def general(rng, d, radius):
    a = rng.normal(size=(GROUP, d, d))
    return a * (radius / np.abs(np.linalg.eigvals(a)).max(axis=1))[:, None, None]


def symmetric(rng, d, radius):
    basis = np.linalg.qr(rng.normal(size=(GROUP, d, d)))[0]
    return (basis * rng.uniform(-radius, radius, (GROUP, 1, d))) @ basis.swapaxes(1, 2)


def orthogonal(rng, d, radius):
    return radius * np.linalg.qr(rng.normal(size=(GROUP, d, d)))[0]


def nilpotent(rng, d, radius):
    return np.triu(radius * rng.normal(size=(GROUP, d, d)), 1)


def rank_one(rng, d, radius):
    return radius * rng.normal(size=(GROUP, d, 1)) * rng.normal(size=(GROUP, 1, d)) / d


def no_fixed_point(rng, d, radius):
    """I - A exactly singular: the first coordinate goes to itself plus b."""
    a = general(rng, d, min(radius, 0.9))
    a[:, 0], a[:, :, 0] = 0, 0
    a[:, 0, 0] = 1
    return a


def identity(rng, d, radius):
    return np.tile(np.eye(d), (GROUP, 1, 1))


def zero(rng, d, radius):
    return np.zeros((GROUP, d, d))


KINDS = [general, symmetric, orthogonal, nilpotent, rank_one, no_fixed_point, identity, zero]
SCALES = [1e-30, 1e-10, 1.0, 1.0, 1e5, 1e30]

group = st.tuples(
    st.sampled_from(KINDS),
    st.integers(1, SIZE),
    st.sampled_from([1e-3, 0.3, 0.9, 0.99, 1.0, 1.5, 10.0, 1e3]) | st.floats(0, 2),
    st.sampled_from([0.0, *SCALES]),  # of b
    st.sampled_from([0.0, *SCALES]),  # of the start
)
batches = st.sampled_from([1, 5, BATCH // GROUP]).flatmap(
    lambda n: st.lists(group, min_size=n, max_size=n)
)


def build(groups, seed, dtype):
    """`Maps` of a whole batch, its start, and how many of its samples are problems."""
    rng = np.random.default_rng(seed)
    a, b, z0 = np.zeros((BATCH, SIZE, SIZE)), np.zeros((BATCH, SIZE)), np.zeros((BATCH, SIZE))
    for i, (kind, d, radius, b_scale, z_scale) in enumerate(groups):
        rows = slice(i * GROUP, (i + 1) * GROUP)
        a[rows, :d, :d] = kind(rng, d, radius)
        b[rows, :d] = b_scale * rng.normal(size=(GROUP, d))
        z0[rows, :d] = z_scale * rng.normal(size=(GROUP, d))
    maps = Maps(a.astype(dtype), b.astype(dtype), np.zeros(BATCH, int))
    return maps, z0.astype(dtype), len(groups) * GROUP


def recomputed(maps, z, stop_mode):
    """The residual of each sample by one plain evaluation, and what rounding can make of it."""
    a, b, z = (array.astype(np.float64) for array in (maps.a, maps.b, z))
    fz = np.einsum("bij,bj->bi", a, z) + b
    terms = np.einsum("bij,bj->bi", abs(a), abs(z)) + abs(b) + abs(z)
    rounding = (SIZE + 4) * np.finfo(maps.a.dtype).eps * np.linalg.norm(terms, axis=1)
    absolute, size = np.linalg.norm(fz - z, axis=1), np.linalg.norm(fz, axis=1)
    if stop_mode == "abs":
        return absolute, rounding
    # f(z) = 0 is solved if z is zero too, else the residual is the largest number.
    info = np.finfo(maps.a.dtype)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        actual = np.where(size >= info.tiny, absolute / size, np.where(absolute == 0, 0, info.max))
        rounding = np.where(size >= info.tiny, rounding / size, 0)
    return np.minimum(actual, info.max), np.minimum(rounding, info.max)


class Report(NamedTuple):
    """A solution as numpy arrays; `objective` and `trace` are those of the stopping rule."""

    z: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    objective: np.ndarray
    trace: np.ndarray
    abs_trace: np.ndarray

    @classmethod
    def of(cls, sol, stop_mode):
        chosen = sol.rel_residual, sol.rel_trace
        if stop_mode == "abs":
            chosen = sol.residual, sol.abs_trace
        return cls(*map(np.asarray, (sol.z, sol.status, sol.steps, *chosen, sol.abs_trace)))


def last(trace):
    """The residual of each sample that was recorded last; NaN if none was."""
    row = np.where(np.isnan(trace), -1, np.arange(len(trace))[:, None]).max(axis=0)
    return trace[row, np.arange(BATCH)]


def check(sol, first, maps, steps, *, stop_mode, tol, **_):
    """Everything that a solution says of itself. Returns which samples say so beyond rounding."""
    nfe, report = int(sol.nfe), Report.of(sol, stop_mode)
    start, first_abs = Report.of(first, stop_mode).objective, np.asarray(first.residual)
    assert report.z.dtype == maps.a.dtype
    assert np.isfinite(report.z).all()

    # Steps and evaluations.
    assert 1 <= nfe <= steps + 1
    assert (report.steps >= 0).all() and (report.steps < nfe).all()
    assert np.isnan(report.trace[nfe - 1 :]).all()

    # The best iterate is the best, and its residual is what is said of it.
    best = report.objective
    assert (best == np.minimum(start, np.nanmin(report.trace, axis=0, initial=np.inf))).all()
    assert (best <= start).all()
    actual, rounding = recomputed(maps, report.z, stop_mode)
    known = np.isfinite(best)
    slack = rounding + 32 * np.finfo(maps.a.dtype).eps * actual
    assert (abs(best - actual) <= slack)[known].all()

    # The status.
    converged, lost, flat, cut_short = (
        report.status == s
        for s in (Status.CONVERGED, Status.DIVERGED, Status.STALLED, Status.MAX_STEPS)
    )
    assert (converged | lost | flat | cut_short).all()
    assert (best < tol)[converged].all() and (best >= tol)[~converged].all()
    assert (actual < tol + slack)[converged].all()
    assert nfe == steps + 1 or not cut_short.any()
    final, final_abs = last(report.trace), last(report.abs_trace)
    with np.errstate(over="ignore"):
        grown = final_abs > DIVERGED_ABS * first_abs
        if stop_mode == "rel":
            grown |= (final_abs > first_abs) & (final > DIVERGED_REL * start)
    assert (grown | np.isinf(final_abs) | np.isinf(start))[lost].all()
    assert not np.isinf(final)[flat].any()
    return converged & (slack < 0.5 * tol)


@pytest.mark.slow
def test_ten_thousand_random_affine_maps(x64):
    problems, outcomes, beyond_rounding = Counter(), Counter(), Counter()

    @settings(
        max_examples=160,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        groups=batches,
        seed=st.integers(0, 2**32 - 1),
        dtype=st.sampled_from(list(VARIANTS)),
        budget=st.integers(0, MAX_STEPS) | st.just(MAX_STEPS),
    )
    def run(groups, seed, dtype, budget):
        maps, z0, count = build(groups, seed, dtype)
        for solver, options in VARIANTS[dtype]:
            solve = compiled(solver, **options)
            sol, first = solve(maps, z0, budget), solve(maps, z0, 0)
            sharp = check(sol, first, maps, min(budget, options["max_steps"]), **options)
            name = solver.__name__
            problems[name] += count
            outcomes.update((name, status) for status in np.asarray(sol.status)[:count].tolist())
            beyond_rounding[name] += int(sharp[:count].sum())

    run()
    for name in SOLVERS:
        assert problems[name] >= PROBLEMS
        # The problems are no formality: there are all outcomes, and few hang on rounding.
        assert min(outcomes[name, s] for s in (Status.CONVERGED, Status.MAX_STEPS)) > 1000
        assert outcomes[name, Status.DIVERGED] > 50
        assert beyond_rounding[name] > 0.8 * outcomes[name, Status.CONVERGED]
