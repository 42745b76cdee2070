"""Gradients of an equilibrium against autodiff, closed forms and their own definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mdeq_jax.implicit import (
    BackwardStats,
    equilibrium,
    ift,
    neumann,
    phantom,
    solve_adjoint,
)
from mdeq_jax.solvers import Status, anderson, broyden, fixed_point_iteration
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
    tree_cell,
    unrolled_loss,
    value,
)


@pytest.mark.parametrize("cell", [affine_cell, tanh_cell, tree_cell])
@pytest.mark.parametrize("linearize_at", ["z_star", "f_z_star"])
def test_ift_is_unrolled_autodiff(cell, linearize_at, x64):
    params, x = problem()
    gradient = partial(ift, linearize_at=linearize_at)
    implicit = jax.jit(jax.grad(partial(loss, cell, gradient=gradient), argnums=(0, 1)))
    unrolled = jax.jit(jax.grad(partial(unrolled_loss, cell), argnums=(0, 1)))
    assert_trees_close(implicit(params, x), unrolled(params, x), rtol=1e-9)


@pytest.mark.parametrize("cell", [affine_cell, tanh_cell])
@pytest.mark.parametrize("solver", [broyden, anderson, fixed_point_iteration])
def test_check_grads(cell, solver, x64):
    params, x = problem()
    solve = partial(solver, max_steps=200, tol=1e-12)
    f = jax.jit(partial(loss, cell, f_solver=solve, b_solver=solve))
    check_grads(f, (params, x), order=1, modes=["rev"], rtol=1e-6)


def test_affine_closed_form(x64):
    params, x = problem()
    inverse = np.linalg.inv(np.eye(SIZE) - params["w"])  # z = (x + b) (I - w)^-1
    np.testing.assert_allclose(
        equilibrium(affine_cell, params, x, start(affine_cell), f_solver=SOLVE)[0],
        (x + params["b"][None]) @ inverse,
        atol=1e-10,
    )
    expected = np.tile(inverse @ np.cos(np.arange(SIZE)), (BATCH, 1))
    np.testing.assert_allclose(jax.grad(loss, argnums=2)(affine_cell, params, x), expected)


def test_phantom_is_its_definition(x64):
    params, x = problem()
    z_star = equilibrium_of(params, x)

    def definition(params):
        z = z_star
        for _ in range(3):
            z = (1 - 0.7) * z + 0.7 * tanh_cell(params, z, x)
        return value(z)

    gradient = partial(phantom, steps=3, tau=0.7)
    ours = jax.grad(partial(loss, tanh_cell, gradient=gradient))(params, x)
    assert_trees_close(ours, jax.grad(definition)(params), rtol=1e-10)


def test_one_step_is_its_definition(x64):
    params, x = problem()
    z_star = equilibrium_of(params, x)
    ours = jax.grad(partial(loss, tanh_cell, gradient="one_step"))(params, x)
    definition = jax.grad(lambda params: value(tanh_cell(params, z_star, x)))(params)
    assert_trees_close(ours, definition, rtol=1e-10)
    undamped = partial(loss, tanh_cell, gradient=partial(phantom, steps=1, tau=1.0))
    assert_trees_close(ours, jax.grad(undamped)(params, x), 1e-10)


@pytest.mark.parametrize(("steps", "tau"), [(1, 0.5), (4, 0.5), (3, 1.0)])
def test_neumann_is_its_definition(steps, tau, x64):
    """tau * sum_{i < k} (1 - tau + tau J^T)^i g, with dense matrices."""
    params, x = problem()
    z_star = equilibrium_of(params, x)
    _, pull_params = jax.vjp(lambda params: tanh_cell(params, z_star, x), params)
    jacobians = jax.vmap(
        lambda z, x: jax.jacobian(lambda z: tanh_cell(params, z[None], x[None])[0])(z)
    )(z_star, x)
    g = np.cos(np.arange(SIZE))
    u = np.stack(
        [
            tau
            * sum(
                np.linalg.matrix_power((1 - tau) * np.eye(SIZE) + tau * j.T, i) @ g
                for i in range(steps)
            )
            for j in np.asarray(jacobians)
        ]
    )
    gradient = partial(neumann, steps=steps, tau=tau)
    ours = jax.grad(partial(loss, tanh_cell, gradient=gradient))(params, x)
    assert_trees_close(ours, pull_params(jnp.asarray(u))[0], rtol=1e-9)


def test_neumann_tends_to_the_exact_gradient(x64):
    params, x = problem()
    series = partial(neumann, steps=300, tau=0.8)
    ours = jax.grad(partial(loss, tanh_cell, gradient=series))(params, x)
    assert_trees_close(ours, jax.grad(partial(loss, tanh_cell))(params, x), rtol=1e-9)


@pytest.mark.slow
def test_vmap_over_parameters(x64):
    params, x = problem()
    many = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    together = jax.vmap(jax.grad(partial(loss, tanh_cell)), in_axes=(0, None))(many, x)
    for i in range(2):
        alone = jax.grad(partial(loss, tanh_cell))(jax.tree.map(lambda p, i=i: p[i], many), x)
        assert_trees_close(jax.tree.map(lambda p, i=i: p[i], together), alone, rtol=1e-9)


def test_pmap(x64):
    params, x = problem()
    gradient = jax.pmap(jax.grad(partial(loss, tanh_cell)), in_axes=(None, 0))(params, x[None])
    alone = jax.grad(partial(loss, tanh_cell))(params, x)
    assert_trees_close(jax.tree.map(lambda p: p[0], gradient), alone, rtol=1e-9)


def test_stats_come_out_as_a_gradient(x64):
    params, x = problem()
    f = partial(loss, tanh_cell)
    gradient, stats = jax.grad(lambda p, s: f(p, x, backward_stats=s), argnums=(0, 1))(
        params, BackwardStats.zeros(BATCH)
    )
    assert_trees_close(gradient, jax.grad(f)(params, x), rtol=1e-12)
    g = jnp.tile(jnp.cos(jnp.arange(SIZE, dtype=x.dtype))[None], (BATCH, 1))
    z, _ = equilibrium(tanh_cell, params, x, start(tanh_cell), f_solver=SOLVE)
    _, solution = solve_adjoint(tanh_cell, params, x, z, g, b_solver=SOLVE)
    assert stats.nfe == solution.nfe
    np.testing.assert_array_equal(stats.steps, solution.steps)
    assert (stats.status == Status.CONVERGED).all()
    assert (stats.rel_residual < 1e-12).all()


def test_the_start_and_the_solver_get_no_gradient(x64):
    params, x = problem()

    def of_start(z0):
        z, solution = equilibrium(tanh_cell, params, x, z0, f_solver=SOLVE)
        return value(z) + jnp.sum(solution.z) + jnp.sum(solution.residual)

    np.testing.assert_array_equal(jax.grad(of_start)(jnp.ones((BATCH, SIZE))), 0)


def test_solvers_are_functions():
    params, x = problem()
    for name in ("f_solver", "b_solver"):
        with pytest.raises(TypeError, match=rf"{name} must be a function .*; got 'broyden'"):
            equilibrium(tanh_cell, params, x, start(tanh_cell), **{name: "broyden"})


def test_bad_arguments():
    params, x = problem()
    with pytest.raises(ValueError, match=r"gradient must be one of .*; got 'implicit'"):
        loss(tanh_cell, params, x, gradient="implicit")
    with pytest.raises(ValueError, match="linearize_at must be one of"):
        loss(tanh_cell, params, x, gradient=partial(ift, linearize_at="z"))
    with pytest.raises(ValueError, match="number of terms, must be at least 1; got 0"):
        loss(tanh_cell, params, x, gradient=partial(phantom, steps=0))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]; got 1.5"):
        loss(tanh_cell, params, x, gradient=partial(neumann, tau=1.5))
