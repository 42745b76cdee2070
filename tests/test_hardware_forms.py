"""The forms for GPUs compute the same as those for CPUs, and their loops have no branch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import equilibrium
from mdeq_jax.layers import conv2d, group_norm
from mdeq_jax.solvers import SOLVERS
from mdeq_jax.solvers.norms import safe_norms
from tests.helpers.jaxprs import equations, loop_bodies


def affine_map(x):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(40, 40)) / 10)
    return lambda z: jnp.tanh(z @ matrix) + x


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name, as_on_gpu, x64):
    x = jax.random.normal(jax.random.key(0), (5, 40))
    solve = partial(SOLVERS[name], affine_map(x), jnp.zeros((5, 40)), max_steps=20, tol=1e-10)
    ours, theirs = solve(), as_on_gpu(solve)
    np.testing.assert_array_equal(ours.status, theirs.status)
    np.testing.assert_allclose(ours.z, theirs.z, atol=1e-9)
    np.testing.assert_allclose(ours.rel_trace[:5], theirs.rel_trace[:5], rtol=1e-9)


def test_group_norm_and_its_derivative(as_on_gpu, x64):
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 12))
    affine = {"scale": jnp.arange(1.0, 13.0), "bias": jnp.arange(12.0)}

    def value_and_pullback(x, affine):
        y, pullback = jax.vjp(lambda x, affine: group_norm(x, 4, affine), x, affine)
        return y, pullback(jnp.cos(y))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
        value_and_pullback(x, affine),
        as_on_gpu(value_and_pullback, x, affine),
    )


def test_equilibria_and_their_derivatives(as_on_gpu, x64):
    def f(params, z, x):
        return {"a": jnp.tanh(z["a"] @ params + x), "b": jnp.sin(z["b"]) / 2 + z["a"][:, :3]}

    def loss(params, x):
        z0 = {"a": jnp.zeros((4, 6)), "b": jnp.zeros((4, 3))}
        solver = partial(SOLVERS["broyden"], max_steps=60, tol=1e-13)
        z, _ = equilibrium(f, params, x, z0, f_solver=solver, b_solver=solver)
        return jnp.sum(z["a"] ** 3) + jnp.sum(jnp.cos(z["b"]))

    def derivatives(params, x):
        gradient = jax.grad(loss, (0, 1))
        return gradient(params, x), jax.grad(lambda x: jnp.sum(gradient(params, x)[0] ** 2))(x)

    params = jax.random.normal(jax.random.key(0), (6, 6)) / 6
    x = jax.random.normal(jax.random.key(1), (4, 6))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        jax.jit(derivatives)(params, x),
        as_on_gpu(jax.jit(derivatives), params, x),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_derivative(stride, as_on_gpu, x64):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))

    def value_and_pullback(x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride), x, kernel)
        return y, pullback(jnp.cos(y))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10),
        value_and_pullback(x, kernel),
        as_on_gpu(value_and_pullback, x, kernel),
    )


@pytest.mark.parametrize(
    "size", [0.0, 1e-30, 1e-17, 1e-12, 1.0, 1e12, 1e18, 1e25, 1e37, np.inf, np.nan]
)
def test_norms_neither_overflow_nor_vanish(size, as_on_gpu):
    rng = np.random.default_rng(0)
    x = (size * rng.uniform(1, 2, size=(4, 100))).astype(np.float32)
    exact = np.sqrt(np.sum(np.square(x.astype(np.float64)), axis=1))
    for norms in (safe_norms, partial(as_on_gpu, safe_norms)):
        (norm,) = norms(jnp.asarray(x))
        np.testing.assert_allclose(norm, exact, rtol=1e-5)
        mixed = x.copy()
        mixed[1:] = 1  # the others do not suffer
        (norm,) = norms(jnp.asarray(mixed))
        np.testing.assert_allclose(norm, [exact[0], 10, 10, 10], rtol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_branch_within_a_step_on_gpus(name, as_on_gpu):
    """A branch there is a round trip to the host at every step."""
    x = jnp.ones((5, 40))
    solve = partial(SOLVERS[name], affine_map(x), max_steps=20)
    (body,) = as_on_gpu(loop_bodies, lambda z: solve(z).z, jnp.zeros((5, 40)))
    assert not {"cond", "while"} & {equation.primitive.name for equation in equations(body)}
