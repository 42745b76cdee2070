"""SHINE: the transposed estimate against dense matrices, and where its gradient is exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import BackwardStats, equilibrium, shine
from mdeq_jax.solvers import (
    Status,
    anderson,
    broyden,
    inverse_product,
    transposed_inverse_product,
)
from tests.helpers.cells import (
    BATCH,
    SIZE,
    SOLVE,
    affine_cell,
    assert_trees_close,
    equilibrium_of,
    loss,
    problem,
    start,
    tanh_cell,
)


def textbook_inverse(g, z, updates):
    """Broyden's dense H after so many rank-one updates from -I, and the iterate it steps to."""
    inverse, gz = -np.eye(len(z)), g(z)
    for _ in range(updates):
        step = -inverse @ gz
        z = z + step
        change = g(z) - gz
        v = inverse.T @ step
        inverse += np.outer(step - inverse @ change, v) / (v @ change)
        gz = g(z)
    return inverse, z - inverse @ gz


def test_products_are_those_of_the_textbooks_dense_matrix(x64):
    """Each sample with the estimate of the state that it ended with, early or late."""
    params, x = problem()
    # The second sample starts near its equilibrium and ends early; the third runs to the limit.
    z0 = start(tanh_cell).at[1].set(jax.jit(equilibrium_of)(params, x)[1] + 1e-3)
    y = np.random.default_rng(0).normal(size=(BATCH, SIZE))

    @jax.jit
    def solve(z0, y):
        solution = broyden(
            lambda z: tanh_cell(params, z, x), z0, max_steps=9, tol=1e-6, keep_inverse=True
        )
        estimate = solution.inverse
        return solution, inverse_product(estimate, y), transposed_inverse_product(estimate, y)

    solution, products, transposed = jax.device_get(solve(z0, y))
    params, x, z0 = jax.device_get((params, x, z0))
    steps = solution.steps
    assert steps[1] < steps[0] and steps.max() == 9
    for i in range(BATCH):

        def g(z, i=i):
            return np.tanh(z @ params["w"] + params["b"] + x[i]) - z

        inverse, z = textbook_inverse(g, z0[i], int(steps[i]) - 1)
        np.testing.assert_allclose(z, solution.z[i], atol=1e-9)
        np.testing.assert_allclose(products[i], inverse @ y[i], atol=1e-9)
        np.testing.assert_allclose(transposed[i], inverse.T @ y[i], atol=1e-9)


def test_a_history_that_is_not_finite_gives_the_jacobian_free_direction():
    y = jnp.ones((2, 3))

    @jax.jit
    def products(y):
        estimate = broyden(jnp.cos, 0 * y, max_steps=4, keep_inverse=True).inverse
        broken = estimate._replace(steps=estimate.steps.at[0].set(jnp.inf))
        return [transposed_inverse_product(e, y) for e in (estimate, broken)]

    whole, broken = products(y)
    np.testing.assert_array_equal(broken[0], -y[0])
    np.testing.assert_allclose(broken[1], whole[1])
    assert np.abs(broken[1] + y[1]).max() > 0.1


def cyclic_problem(seed=0):
    """An affine map whose Broyden steps are orthogonal: n of them span the space.

    In some orthonormal basis it takes each axis to a multiple of the next, from an input along the
    first. Broyden's steps then visit one axis after the other, so that its n updates each correct
    a direction of their own, and the estimate is the inverse. (In general a later update spoils
    what an earlier one corrected, and the estimate is not exact even where the solve is.)
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    shift = np.roll(np.diag(rng.uniform(0.3, 1.2, SIZE)), 1, axis=1)
    params = {"w": jnp.asarray(basis.T @ shift @ basis), "b": jnp.zeros(SIZE)}
    return params, jnp.asarray(np.outer([1.0, -2.0, 0.5], basis[0]))


def test_exact_for_an_affine_map_once_broyden_has_converged_in_as_many_steps_as_dimensions(x64):
    params, x = cyclic_problem()

    @jax.jit
    def both(params, x):
        solution = equilibrium(affine_cell, params, x, start(affine_cell), f_solver=SOLVE)[1]
        of = [partial(loss, affine_cell, gradient=name) for name in ("shine", "ift")]
        return solution.steps, [jax.grad(f, argnums=(0, 1))(params, x) for f in of]

    steps, (ours, exact) = both(params, x)
    np.testing.assert_array_equal(steps, SIZE + 1)  # n updates, and the step that they give
    assert_trees_close(ours, exact, rtol=1e-8)
    inverse = np.linalg.inv(np.eye(SIZE) - params["w"])  # z = x (I - w)^-1
    expected = np.tile(inverse @ np.cos(np.arange(SIZE)), (BATCH, 1))
    np.testing.assert_allclose(ours[1], expected, rtol=1e-8)


def test_refinement_and_its_statistics(x64):
    params, x = problem()

    def gradient_of(gradient, stats):
        of = lambda p, s: loss(tanh_cell, p, x, backward_stats=s, gradient=gradient)  # noqa: E731
        return jax.grad(of, argnums=(0, 1))(params, stats)

    @jax.jit
    def run(stats):
        refined = [partial(shine, refine_steps=n) for n in (0, 4, 60)]
        return [gradient_of(gradient, stats) for gradient in (*refined, "ift")]

    *refined, (exact, _) = jax.device_get(run(BackwardStats.zeros(BATCH)))
    errors = [
        np.linalg.norm(ours["w"] - exact["w"]) / np.linalg.norm(exact["w"]) for ours, _ in refined
    ]
    assert 0.01 < errors[0] < 1 and errors[1] < 0.5 * errors[0] and errors[2] < 1e-8
    residuals = [stats.rel_residual for _, stats in refined]
    assert (residuals[2] < 1e-12).all() and (residuals[0] > 1e-3).all()
    assert [int(stats.nfe) for _, stats in refined][:2] == [0, 5]
    assert (refined[2][1].status == Status.CONVERGED).all()


def test_the_report_does_not_keep_the_history():
    params, x = problem()
    solve = partial(equilibrium, tanh_cell, gradient="shine")
    _, solution = jax.eval_shape(solve, params, x, start(tanh_cell))
    assert solution.inverse == ()


def test_refused():
    params, x = problem()
    with pytest.raises(ValueError, match=r"f_solver must be .*broyden.*; got anderson"):
        loss(tanh_cell, params, x, f_solver=partial(anderson, m=3), gradient="shine")
    with pytest.raises(ValueError, match="needs the inverse estimate"):
        shine(tanh_cell, params, x, start(tanh_cell))
    with pytest.raises(ValueError, match="refine_steps must not be negative; got -1"):
        jax.eval_shape(
            partial(loss, tanh_cell, gradient=partial(shine, refine_steps=-1)), params, x
        )
