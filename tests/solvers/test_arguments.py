"""Arguments of a solver that are traced, or that it refuses with a remedy; the trace hook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.solvers import SOLVERS, Status, fixed_point_iteration

every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
Z0 = jnp.zeros((2, 3))


def cosine(z):
    return jnp.cos(z)


@every_solver
def test_tol_may_be_traced(solver):
    run = jax.jit(lambda tol: solver(cosine, Z0, max_steps=30, tol=tol))
    loose, tight = run(1e-1), run(1e-4)
    assert run._cache_size() == 1
    assert (loose.status == Status.CONVERGED).all() and (tight.status == Status.CONVERGED).all()
    assert (loose.rel_residual > 1e-4).all() and (tight.rel_residual < 1e-4).all()


def test_tol_may_differ_between_samples():
    tol = jnp.array([1e-1, 1e-5])
    solution = fixed_point_iteration(cosine, Z0, max_steps=50, tol=tol)
    assert (solution.status == Status.CONVERGED).all()
    assert solution.steps[0] < solution.steps[1]
    assert (solution.rel_residual < tol).all()


@every_solver
def test_a_traced_max_steps_names_step_budget(solver):
    with pytest.raises(TypeError, match=r"max_steps must be a Python integer.*step_budget"):
        jax.jit(lambda n: solver(cosine, Z0, max_steps=n).z)(5)


@every_solver
@pytest.mark.parametrize(
    ("z0", "error", "message"),
    [
        ([[0.0, 0.0]], TypeError, r"z0 must be a floating-point array; got a list.*jnp.asarray"),
        (np.zeros((2, 3)), TypeError, r"z0 is a NumPy array of float64.*float32.*jnp.asarray\(z0"),
        (np.zeros((2, 3), int), TypeError, r"z0 must be a floating-point array; got int64.*astype"),
        (jnp.zeros(3), ValueError, r"z0 must have two axes.*\(3,\).*z0\[None\]"),
    ],
)
def test_other_starts_are_refused(solver, z0, error, message):
    with pytest.raises(error, match=message):
        solver(cosine, z0)


@every_solver
@pytest.mark.parametrize("tol", [-1.0, np.nan])
def test_tol_out_of_range(solver, tol):
    with pytest.raises(ValueError, match="tol must not be negative"):
        solver(cosine, Z0, tol=tol)


@every_solver
def test_trace_gets_every_step(solver):
    calls = []
    solution = jax.jit(
        lambda z0: solver(cosine, z0, max_steps=4, tol=0, trace=lambda *args: calls.append(args))
    )(Z0)
    jax.block_until_ready(solution)
    jax.effects_barrier()
    steps, states, residuals = zip(*sorted(calls, key=lambda call: int(call[0])))
    assert [int(step) for step in steps] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(residuals[1:], solution.rel_trace)
    np.testing.assert_array_equal(states[0], Z0)
    for z, residual in zip(states, residuals):
        error = np.linalg.norm(np.cos(z) - z, axis=1) / np.linalg.norm(np.cos(z), axis=1)
        np.testing.assert_allclose(residual, error, rtol=1e-3, atol=1e-6)
