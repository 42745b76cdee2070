"""Cells with known answers that the tests of gradients share: three samples of six numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.implicit import equilibrium
from mdeq_jax.solvers import broyden

SIZE, BATCH = 6, 3
SOLVE = partial(broyden, max_steps=60, tol=1e-13)


def affine_cell(params, z, x):
    return z @ params["w"] + params["b"][None] + x


def tanh_cell(params, z, x):
    return jnp.tanh(affine_cell(params, z, x))


def tree_cell(params, z, x):
    """A state of two parts, of different ranks, that depend on each other."""
    first, second = z["first"], z["second"].reshape(BATCH, -1)
    image = tanh_cell(params, jnp.concatenate([first, second], axis=1), x)
    return {"first": image[:, :2], "second": image[:, 2:].reshape(BATCH, 2, 2)}


def problem(seed=0):
    """Parameters of spectral radius 0.8, and an input."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(SIZE, SIZE))
    w *= 0.8 / np.abs(np.linalg.eigvals(w)).max()
    params = {"w": jnp.asarray(w), "b": jnp.asarray(rng.normal(size=SIZE))}
    return params, jnp.asarray(rng.normal(size=(BATCH, SIZE)))


def value(z):
    """A loss: a fixed linear function of the state."""
    flat = jnp.concatenate([leaf.reshape(BATCH, -1) for leaf in jax.tree.leaves(z)], axis=1)
    return jnp.sum(flat * jnp.cos(jnp.arange(SIZE, dtype=flat.dtype))[None])


def start(cell):
    if cell is tree_cell:
        return {"first": jnp.zeros((BATCH, 2)), "second": jnp.zeros((BATCH, 2, 2))}
    return jnp.zeros((BATCH, SIZE))


def loss(cell, params, x, **kwargs):
    kwargs = {"f_solver": SOLVE, "b_solver": SOLVE, **kwargs}
    return value(equilibrium(cell, params, x, start(cell), **kwargs)[0])


def unrolled_loss(cell, params, x, steps=400):
    z, _ = jax.lax.scan(lambda z, _: (cell(params, z, x), None), start(cell), length=steps)
    return value(z)


def equilibrium_of(params, x):
    """Of `tanh_cell`."""
    return jax.lax.fori_loop(0, 300, lambda _, z: tanh_cell(params, z, x), start(tanh_cell))


def assert_trees_close(a, b, rtol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.linalg.norm(y))
