"""Ten thousand random affine maps through every solver: no NaN, and no false report.

Every batch has the same shape, so that a handful of compilations do: a map of d dimensions has
zero rows and columns beyond d, and places that are left over in a batch hold zero maps.
"""

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_maps import Maps, compiled

from mdeq_jax.solvers import SOLVERS, Status, anderson, broyden, fixed_point_iteration
from mdeq_jax.solvers.base import DIVERGED_ABS, DIVERGED_REL, REL_EPS

BATCH, SIZE, GROUP, MAX_STEPS = 128, 12, 16, 40
PROBLEMS = 10_000

# Each is compiled once. What a solver can be set to is spread over the two types.
VARIANTS = {
    "float32": [
        (broyden, dict(stop_mode="rel", tol=1e-4)),
        (broyden, dict(stop_mode="abs", tol=1e-4, history_dtype="bfloat16", max_steps=12)),
        (anderson, dict(stop_mode="rel", tol=1e-4)),
        (fixed_point_iteration, dict(stop_mode="abs", tol=1e-4)),
    ],
    "float64": [
        (broyden, dict(stop_mode="abs", tol=1e-9)),
        (anderson, dict(stop_mode="abs", tol=1e-9, beta=0.8, restart_growth=2.0)),
        (anderson, dict(stop_mode="rel", tol=1e-9, m=3, restart_every=7)),
        (fixed_point_iteration, dict(stop_mode="rel", tol=1e-9, tau=0.7)),
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
    maps = Maps(a.astype(dtype), b.astype(dtype), np.zeros(BATCH, bool))
    return maps, z0.astype(dtype), len(groups) * GROUP


def recomputed(maps, z, stop_mode):
    """The residual of each sample by one plain evaluation, and what rounding can make of it."""
    a, b, z = (array.astype(np.float64) for array in (maps.a, maps.b, z))
    fz = np.einsum("bij,bj->bi", a, z) + b
    terms = np.einsum("bij,bj->bi", abs(a), abs(z)) + abs(b) + abs(z)
    rounding = (SIZE + 4) * np.finfo(maps.a.dtype).eps * np.linalg.norm(terms, axis=1)
    size = np.linalg.norm(fz, axis=1) + REL_EPS if stop_mode == "rel" else 1.0
    return np.linalg.norm(fz - z, axis=1) / size, rounding / size


def last(trace):
    """The last residual of each sample that was recorded; NaN if there is none."""
    trace = np.asarray(trace)
    row = np.where(np.isnan(trace), -1, np.arange(len(trace))[:, None]).max(axis=0)
    return trace[row, np.arange(BATCH)]


def check(sol, first, maps, budget, stop_mode, tol):
    """Everything that a solution says of itself; returns how many results rounding leaves sharp."""
    z, status, steps = np.asarray(sol.z), np.asarray(sol.status), np.asarray(sol.steps)
    assert z.dtype == maps.a.dtype
    assert np.isfinite(z).all()
    done = int(sol.nfe) - 1  # steps made
    assert 0 <= done <= budget
    assert (steps >= 0).all() and (steps <= done).all()

    pick = (
        (lambda s: (s.rel_residual, s.rel_trace))
        if stop_mode == "rel"
        else (lambda s: (s.residual, s.abs_trace))
    )
    best, trace = (np.asarray(x) for x in pick(sol))
    start = np.asarray(pick(first)[0])
    assert not np.isnan(best).any()
    assert (best <= start).all()
    assert (best == np.minimum(start, np.nanmin(trace, axis=0, initial=np.inf))).all()
    assert np.isnan(trace[done:]).all()

    actual, rounding = recomputed(maps, z, stop_mode)
    known = np.isfinite(best)
    assert (abs(best - actual) <= rounding + 1e-5 * actual)[known].all()
    converged = status == Status.CONVERGED
    assert (best[converged] < tol).all()
    assert (actual <= tol + rounding)[converged].all()
    assert (best[~converged] >= tol).all()
    assert (done == budget) or (status != Status.MAX_STEPS).all()

    lost = status == Status.DIVERGED
    with np.errstate(over="ignore"):
        grown = last(sol.abs_trace) > DIVERGED_ABS * np.asarray(first.residual)
        grown |= last(sol.rel_trace) > DIVERGED_REL * np.asarray(first.rel_residual)
    assert (grown | np.isinf(last(sol.abs_trace)) | np.isinf(start))[lost].all()
    flat = status == Status.STALLED
    assert (~np.isinf(last(sol.abs_trace)))[flat].all()
    return converged, (converged & (rounding < 0.1 * tol)).sum()


def test_ten_thousand_random_affine_maps(x64):
    counts, outcomes = Counter(), Counter()
    converged_count, sharp_count = Counter(), Counter()

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
        maps, z0, problems = build(groups, seed, dtype)
        for solver, options in VARIANTS[dtype]:
            solve = compiled(solver, **{"max_steps": MAX_STEPS, **options})
            sol, first = solve(maps, z0, budget), solve(maps, z0, 0)
            converged, sharp = check(sol, first, maps, budget, options["stop_mode"], options["tol"])
            name = solver.__name__
            counts[name] += problems
            for status in np.asarray(sol.status)[:problems]:
                outcomes[name, Status(status).name] += 1
            converged_count[name] += int(converged.sum())
            sharp_count[name] += int(sharp)

    run()
    print(counts, outcomes, converged_count, sharp_count)
    for name in SOLVERS:
        assert counts[name] >= PROBLEMS
