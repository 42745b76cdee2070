"""Conditions that have no derivative, masks or token numbers, beside those that have one."""

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax.implicit import GRADIENTS, equilibrium, jacobian_loss, solve_tangent
from tests.helpers.cells import SIZE, SOLVE, assert_trees_close, problem, start, tanh_cell, value

KEPT = jnp.arange(SIZE) % 3 > 0
ROWS = jnp.array([2, 0, 1])  # of the table, one a sample


def cell(params, z, x):
    looked_up = params["table"][x["rows"]]
    return jnp.where(x["kept"][None], tanh_cell(params, z, x["add"] + looked_up), 0)


def plain_cell(params, z, x):
    """The same with the masks and rows as constants."""
    return cell(params, z, {"kept": KEPT, "rows": ROWS, "add": x["add"]})


def inputs():
    params, add = problem()
    params["table"] = jnp.sin(jnp.arange(3 * SIZE, dtype=add.dtype)).reshape(3, SIZE)
    return params, add, {"kept": KEPT, "rows": ROWS}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_gradient_takes_them(gradient, on_gpu, as_on_gpu, x64):
    params, add, fixed = inputs()

    def loss(f, params, add, fixed):
        x = {"add": add, **fixed}
        solvers = {"f_solver": SOLVE, "b_solver": SOLVE}
        return value(equilibrium(f, params, x, start(f), gradient=gradient, **solvers)[0])

    with_them = jax.jit(jax.grad(lambda *args: loss(cell, *args), argnums=(0, 1)))
    without = jax.jit(jax.grad(lambda *args: loss(plain_cell, *args), argnums=(0, 1)))
    ours = (as_on_gpu if on_gpu else lambda f, *args: f(*args))(with_them, params, add, fixed)
    assert_trees_close(ours, without(params, add, {}), rtol=1e-9)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_so_do_gradients_of_the_gradient_tangents_and_the_jacobian_loss(on_gpu, as_on_gpu, x64):
    params, add, fixed = inputs()

    def everything(f, params, add, fixed):
        def x_of(add):
            return {"add": add, **fixed}

        def loss(params):
            z = equilibrium(f, params, x_of(add), start(f), f_solver=SOLVE, b_solver=SOLVE)[0]
            return value(z)

        def squares(params):
            return sum(
                jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(jax.grad(loss)(params))
            )

        z = jax.lax.stop_gradient(
            equilibrium(f, params, x_of(add), start(f), f_solver=SOLVE, b_solver=SOLVE)[0]
        )
        tangent = {"add": jnp.ones_like(add), **fixed}
        moved, _ = solve_tangent(f, params, x_of(add), z, params, tangent, solver=SOLVE)
        penalty = jax.grad(lambda p: jacobian_loss(f, p, x_of(add), z, key=jax.random.key(0)))
        return jax.grad(squares)(params), moved, penalty(params)

    call = as_on_gpu if on_gpu else lambda f, *args: f(*args)
    with_them = call(jax.jit(lambda *args: everything(cell, *args)), params, add, fixed)
    without = jax.jit(lambda *args: everything(plain_cell, *args))(params, add, {})
    assert_trees_close(with_them, without, rtol=1e-9)
