"""A gradient is linear in the scale of the loss, from 1e-30 to 1e30."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdeq_jax.implicit import GRADIENTS, equilibrium, ift, solve_adjoint
from mdeq_jax.implicit.fallback import UNCONVERGED
from mdeq_jax.solvers import Status, broyden
from tests.helpers.cells import affine_cell, problem, start, tanh_cell, value


@cache
def gradients(gradient):
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem())
    solver = partial(broyden, max_steps=40, tol=1e-6)
    solvers = {"f_solver": solver, "b_solver": solver, "gradient": gradient}

    def loss(params, scales):
        z = equilibrium(tanh_cell, params, x, start(tanh_cell), **solvers)[0]
        return value(z * scales[:, None])

    return jax.jit(lambda scales: jax.grad(loss)(params, scales))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_linear_in_the_loss(gradient):
    run = gradients(gradient)
    expected = run(jnp.ones(3))

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(power=st.sampled_from([-30, -16, -14, 20, 30]) | st.integers(-30, 30))
    def check(power):
        scale = np.float32(10.0**power)
        for ours, theirs in zip(*map(jax.tree.leaves, (run(jnp.full(3, scale)), expected))):
            tolerance = 1e-4 * float(jnp.linalg.norm(theirs))
            np.testing.assert_allclose(ours / scale, theirs, rtol=0, atol=tolerance)

    check()


def test_every_sample_has_its_scale(x64):
    params, x = problem()
    scales = jnp.array([1e-30, 0.0, 1e20])[:, None]
    direction = jnp.ones_like(x)
    solver = partial(broyden, max_steps=40, tol=1e-10)
    u, report = solve_adjoint(affine_cell, params, x, x, scales * direction, b_solver=solver)
    exact = scales * jnp.linalg.solve(jnp.eye(6) - params["w"], direction.T).T
    np.testing.assert_allclose(u, exact, rtol=1e-8)
    assert (report.status == Status.CONVERGED).all()


@pytest.mark.parametrize("unconverged", UNCONVERGED)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad, unconverged, x64):
    """Of that sample alone; a solver's best iterate is always finite."""
    params, x = problem()

    def loss(x):
        gradient = partial(ift, unconverged=unconverged)
        z = equilibrium(tanh_cell, params, x, start(tanh_cell), gradient=gradient)[0]
        return jnp.sum(z * jnp.array([1.0, bad, 1.0])[:, None])

    finite = jnp.isfinite(jax.grad(loss)(x)).all(axis=1)
    assert finite.tolist() == [True, False, True]


def test_an_absolute_tolerance_counts_in_units_of_the_cotangent(x64):
    """Each sample takes the same steps to the same solution, from a loss of any scale."""
    params, x = problem()
    solver = partial(broyden, max_steps=40, tol=1e-3, stop_mode="abs")
    scales = jnp.array([1e-30, 3e-7, 7e12])[:, None]
    solve = jax.jit(lambda g: solve_adjoint(affine_cell, params, x, x, g, b_solver=solver))
    (u, report), (expected, plain) = (solve(s * jnp.ones_like(x)) for s in (scales, 1.0))
    assert (plain.status == Status.CONVERGED).all() and (plain.steps > 0).all()
    np.testing.assert_array_equal(report.steps, plain.steps)
    np.testing.assert_allclose(u / scales, expected, rtol=1e-9)
    np.testing.assert_allclose(report.residual / scales[:, 0], plain.residual, rtol=1e-6)
    assert (report.residual < 1e-3 * np.sqrt(6) * scales[:, 0]).all()
