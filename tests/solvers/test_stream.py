"""Continuous batching: every sample has the answer of its own solve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.solvers import Status, anderson, broyden, fixed_point_iteration, step_history
from tests.helpers.streams import through_slots

SIZE, MAX_STEPS = 12, 40


def affine(z, x):
    matrix, offset = x
    return jnp.einsum("bij,bj->bi", matrix, z) + offset


def problems(count, seed=0):
    """Random affine maps; some diverge, overflow, start at no number or are solved at the start."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, SIZE, SIZE))
    norm = rng.uniform(0.05, 0.95, size=count)
    norm[::37] = 3.0
    matrix *= (norm / np.linalg.norm(matrix, 2, axis=(1, 2)))[:, None, None]
    offset, z0 = rng.normal(size=(count, SIZE)), np.zeros((count, SIZE))
    offset[17], offset[18] = np.inf, 0
    matrix[19] *= 1e200
    z0[5] = np.nan
    return (matrix, offset), z0


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.status, theirs.status)
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    evaluations = 1 + np.sum(~np.isnan(theirs.rel_trace), axis=0)
    moved = ours.status != Status.STALLED  # the step that does not exist is counted, not traced
    np.testing.assert_array_equal(ours.nfe[moved], evaluations[moved])
    for name in ("z", "residual", "rel_residual", "abs_trace", "rel_trace"):
        actual, expected = getattr(ours, name), np.asarray(getattr(theirs, name))
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "solver",
    [
        partial(broyden, tol=1e-7),
        partial(broyden, tol=1e-4, stop_mode="abs", max_steps=7),
        partial(anderson, tol=1e-5, m=4),
        partial(fixed_point_iteration, tol=1e-5, tau=0.8),
    ],
    ids=["broyden", "broyden, few steps", "anderson", "fixed_point_iteration"],
)
def test_answers_are_those_of_the_ordinary_solve(solver, x64):
    solver = partial(solver, **{"max_steps": MAX_STEPS, **solver.keywords})
    x, z0 = problems(150)
    ours, _ = through_slots(affine, solver, x, z0, slots=8, rows=32)
    theirs = jax.jit(lambda x, z0: solver(lambda z: affine(z, x), z0))(x, z0)
    assert {Status.CONVERGED, Status.DIVERGED} <= set(ours.status.tolist())
    assert_same(ours, theirs)


@pytest.mark.slow
def test_ten_thousand_maps_through_64_slots(x64):
    solver = partial(broyden, max_steps=MAX_STEPS, tol=1e-7)
    x, z0 = problems(10_000, seed=1)
    ours, _ = through_slots(affine, solver, x, z0, slots=64, rows=256)

    def solve_alone(x, z0):
        one = jax.tree.map(lambda array: array[None], (x, z0))
        return solver(lambda z: affine(z, one[0]), one[1])

    alone = jax.jit(jax.vmap(solve_alone))(x, z0)
    alone = jax.device_get(alone)
    theirs = alone._replace(
        **{
            name: getattr(alone, name)[:, 0]
            for name in ("z", "residual", "rel_residual", "steps", "status")
        },
        **{name: getattr(alone, name)[:, :, 0].T for name in ("abs_trace", "rel_trace")},
    )
    assert_same(ours, theirs)


def test_a_slot_is_held_no_longer_than_the_limit(x64):
    """The slowest samples leave after their steps, and the evaluations are few."""
    x, z0 = problems(120)
    x[0][:60:2] = np.eye(SIZE)  # without a fixed point
    solver = partial(fixed_point_iteration, max_steps=9, tol=1e-12)
    ours, evaluations = through_slots(affine, solver, x, z0, slots=4, rows=40)
    assert ours.nfe.max() == 10
    assert evaluations <= ours.nfe.sum() / 4 + 10  # the slots are idle only at the end

    fewer, _ = through_slots(affine, solver, x, z0, slots=4, rows=40, step_budget=np.int32(5))
    assert fewer.nfe.max() == 6


@pytest.mark.parametrize("options", [{}, {"history_dtype": "float64"}])
@pytest.mark.parametrize("max_steps", [5, 18, MAX_STEPS])
def test_slots_may_read_filled_rows_only(max_steps, options, monkeypatch, x64):
    x, z0 = problems(60)
    solver = partial(broyden, max_steps=max_steps, tol=1e-7, **options)
    whole, _ = through_slots(affine, solver, x, z0, slots=5, rows=20)
    monkeypatch.setattr(step_history, "LARGE", 0)
    filled, _ = through_slots(affine, solver, x, z0, slots=5, rows=20)
    assert_same(filled, whole)


def test_pallas_kernels_read_the_rows_of_each_slot(as_on_gpu, x64):
    x, z0 = problems(30)
    solver = partial(broyden, max_steps=6, tol=1e-7)
    plain, _ = through_slots(affine, solver, x, z0, slots=3, rows=10)
    ours, _ = as_on_gpu(
        lambda: through_slots(affine, partial(solver, pallas=True), x, z0, slots=3, rows=10)
    )
    np.testing.assert_array_equal(ours.status, plain.status)
    np.testing.assert_allclose(ours.z, plain.z, rtol=1e-8, atol=1e-10)
