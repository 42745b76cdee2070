"""The Jacobian loss whose gradient is computed in the branch of its value."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import FixedPointProblem, jacobian_loss, optional_jacobian_loss

BATCH, SIZE = 3, 4
KEY = jax.random.key(1)


def cell(w, z, x):
    return jnp.tanh(z @ w["kernel"][x["token"]] + x["injection"]) * x["mask"]


def arguments():
    keys = jax.random.split(jax.random.key(0), 3)
    w = {"kernel": jax.random.normal(keys[0], (2, SIZE, SIZE))}
    injection, z = (jax.random.normal(key, (BATCH, SIZE)) for key in keys[1:])
    mask = jnp.arange(SIZE)[None, :] < jnp.array([4, 3, 2])[:, None]
    return w, {"injection": injection, "mask": mask, "token": jnp.int32(1)}, z


def loss_and_gradients(loss):
    w, x, z = arguments()

    def of(w, injection):
        return loss(FixedPointProblem(cell, w, {**x, "injection": injection}, z), z)

    return jax.jit(jax.value_and_grad(lambda *args: 0.3 * of(*args), (0, 1)))(w, x["injection"])


@pytest.mark.parametrize("wanted", [True, False])
def test_value_and_gradients(x64, wanted):
    found = loss_and_gradients(partial(optional, jnp.bool_(wanted)))
    expected = loss_and_gradients(lambda problem, z: jacobian_loss(problem, z=z, key=KEY) * wanted)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-12), found, expected)


def optional(condition, problem, z):
    return optional_jacobian_loss(condition, problem, z=z, key=KEY)


def test_backward_pass_has_no_second_branch():
    jaxpr = str(jax.make_jaxpr(lambda: loss_and_gradients(partial(optional, jnp.bool_(True))))())
    assert jaxpr.count("cond[") == 1


def test_second_derivative(x64):
    w, x, z = arguments()

    def gradient_norm(loss, w):
        grads = jax.grad(lambda w: loss(FixedPointProblem(cell, w, x, z), z))(w)
        return jnp.sum(grads["kernel"] ** 2)

    plain = partial(gradient_norm, lambda problem, z: jacobian_loss(problem, z=z, key=KEY))
    found = jax.grad(partial(gradient_norm, partial(optional, True)))(w)
    np.testing.assert_allclose(found["kernel"], jax.grad(plain)(w)["kernel"], rtol=1e-5)


def test_complex_parameters(x64):
    _, _, z = arguments()
    w = jax.random.normal(KEY, (SIZE, SIZE)) * jnp.exp(1j * jnp.arange(SIZE))[None]

    def gradient(loss):
        def cell(w, z, x):
            return jnp.real(jnp.tanh(z @ w)) + x

        return jax.grad(lambda w: loss(FixedPointProblem(cell, w, z, z), z))(w)

    found = gradient(partial(optional, jnp.bool_(True)))
    expected = gradient(lambda problem, z: jacobian_loss(problem, z=z, key=KEY))
    assert jnp.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-6)
