"""Derivatives of derivatives, forward mode, and clear refusals where there are none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import GRADIENTS, ift, neumann, phantom, solve_tangent, unroll
from tests.helpers.cells import (
    SIZE,
    SOLVE,
    affine_cell,
    assert_trees_close,
    equilibrium_of,
    loss,
    problem,
    start,
    tanh_cell,
    unrolled_loss,
    value,
)


def squares(gradient):
    """A nonlinear function of a gradient, to be differentiated again."""
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradient))


def second(of, params, x):
    return jax.grad(lambda params: squares(jax.grad(of)(params, x)))(params)


def third(of, params, x):
    return jax.grad(lambda params: squares(second(of, params, x)))(params)


@pytest.mark.parametrize(
    "linearize_at", [pytest.param("z_star", marks=pytest.mark.slow), "f_z_star"]
)
def test_derivatives_of_the_exact_gradient_are_exact(linearize_at, x64):
    params, x = problem()
    gradient = partial(ift, linearize_at=linearize_at)

    @jax.jit
    def both(params, x):
        of = partial(loss, tanh_cell, gradient=gradient), partial(unrolled_loss, tanh_cell)
        return [(second(f, params, x), third(f, params, x)) for f in of]

    ours, unrolled = both(params, x)
    assert_trees_close(ours, unrolled, rtol=1e-8)


def test_hessian_of_the_affine_map_in_closed_form(x64):
    """loss = c . z with z = (x + b) (I - s w)^-1, as a function of the scalar s."""
    params, x = problem()

    def of(s):
        return loss(affine_cell, {**params, "w": s * params["w"]}, x)

    w, c = np.asarray(params["w"]), np.cos(np.arange(SIZE))
    inverse = np.linalg.inv(np.eye(SIZE) - 0.7 * w)
    rows = np.sum(np.asarray(x) + np.asarray(params["b"]), axis=0)
    expected = 2 * rows @ inverse @ w @ inverse @ w @ inverse @ c
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(of)))(0.7), expected, rtol=1e-8)


def test_derivatives_of_truncated_gradients(x64):
    params, x = problem()
    z_star = equilibrium_of(params, x)

    def steps_past(params, x):
        z = z_star
        for _ in range(3):
            z = 0.3 * z + 0.7 * tanh_cell(params, z, x)
        return value(z)

    @jax.jit
    def pairs(params, x):
        series = partial(loss, tanh_cell, gradient=partial(neumann, steps=200, tau=0.8))
        steps = partial(loss, tanh_cell, gradient=partial(phantom, steps=3, tau=0.7))
        one = partial(loss, tanh_cell, gradient="one_step")
        return [
            [second(f, params, x) for f in pair]
            for pair in (
                (steps, steps_past),
                (one, lambda params, x: value(tanh_cell(params, z_star, x))),
                (series, partial(loss, tanh_cell, gradient=partial(unroll, steps=200))),
            )
        ]

    for ours, expected in pairs(params, x):
        assert_trees_close(ours, expected, rtol=1e-9)


@pytest.mark.parametrize("gradient", ["shine", "reversible"])
def test_second_derivatives_that_are_refused(gradient):
    params, x = problem()
    with pytest.raises(NotImplementedError, match=f"'{gradient}' gradient cannot be diff"):
        jax.eval_shape(partial(second, partial(loss, tanh_cell, gradient=gradient)), params, x)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_forward_mode_works_or_is_refused(gradient, x64):
    params, x = problem()
    of = partial(loss, tanh_cell, x=x, gradient=gradient)
    if gradient in ("phantom", "one_step", "unroll"):
        both = jax.jit(lambda p: (jax.jvp(of, (p,), (p,))[1], jax.grad(of)(p)))
        ours, reverse = jax.device_get(both(params))
        expected = sum(np.vdot(reverse[name], params[name]) for name in params)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)
    else:
        with pytest.raises(TypeError, match=r"forward-mode .*custom_vjp"):
            jax.jit(lambda p: jax.jvp(of, (p,), (p,))[1]).lower(params)


def test_solve_tangent_is_forward_mode(x64):
    params, x = problem()
    directions = jax.tree.map(jnp.sin, params), jnp.cos(x)

    @jax.jit
    def both():
        z = equilibrium_of(params, x)
        tangent, solution = solve_tangent(tanh_cell, params, x, z, *directions, solver=SOLVE)
        return tangent, solution, jax.jvp(equilibrium_of, (params, x), directions)[1]

    tangent, solution, expected = both()
    np.testing.assert_allclose(tangent, expected, rtol=1e-9, atol=1e-12)
    assert (solution.rel_residual < 1e-12).all() and tangent.shape == start(tanh_cell).shape
