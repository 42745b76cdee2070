"""Broyden's Pallas kernels beside plain products: interpreted here, and lowered for a GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.kernels import broyden_history
from mdeq_jax.solvers import broyden

BATCH, ROWS, FEATURES = 3, 5, 75


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(broyden_history, "STRETCH", 32)


@pytest.mark.parametrize("filled", range(ROWS + 1))
@pytest.mark.parametrize("stored", ["float64", "bfloat16"])
def test_of_the_filled_rows(filled, stored, as_on_gpu, x64):
    """What is beyond them is not read, save the first row before there is any."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(BATCH, ROWS, FEATURES))
    numbers[:, filled:] = np.nan
    if filled == 0:
        numbers[:, 0] = 0
    steps = jnp.asarray(numbers).astype(stored)
    gz = jnp.asarray(rng.normal(size=(BATCH, FEATURES)))
    weights = jnp.asarray(rng.normal(size=(BATCH, ROWS)))

    def compute(filled):
        products = broyden_history.inner_products(steps, filled, gz)
        return *products, *broyden_history.direction(steps, filled, weights, gz)

    with_gz, with_last, w, last_w = as_on_gpu(compute, jnp.int32(filled))
    known = np.asarray(steps[:, :filled], np.float64)
    last = known[:, -1] if filled else np.zeros((BATCH, FEATURES))
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    close(with_gz[:, :filled], np.einsum("bnd,bd->bn", known, gz))
    close(with_last[:, :filled], np.einsum("bnd,bd->bn", known, last))
    assert not np.any(with_gz[:, filled:]) and not np.any(with_last[:, filled:])
    expected = np.einsum("bnd,bn->bd", known, weights[:, :filled]) - gz
    close(w, expected)
    close(last_w, np.einsum("bd,bd->b", last, expected))


@pytest.mark.parametrize("history_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("keep_inverse", [False, True])
def test_the_solver_is_the_same(history_dtype, keep_inverse, as_on_gpu, x64):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(FEATURES, FEATURES)) / 14)
    x = jax.random.normal(jax.random.key(0), (BATCH, FEATURES))

    def solve(pallas):
        return broyden(
            lambda z: jnp.tanh(z @ matrix) + x,
            jnp.zeros((BATCH, FEATURES)),
            max_steps=30,
            tol=1e-10,
            history_dtype=history_dtype,
            keep_inverse=keep_inverse,
            pallas=pallas,
        )

    plain, ours = solve(False), as_on_gpu(solve, True)
    assert ours.nfe == plain.nfe < 31
    np.testing.assert_array_equal(ours.status, plain.status)
    np.testing.assert_allclose(ours.z, plain.z, atol=1e-8)
    # Beside a history in bfloat16 the plain products round the other factor too.
    rtol = 1e-3 if history_dtype else 1e-9
    np.testing.assert_allclose(ours.rel_trace[:8], plain.rel_trace[:8], rtol=rtol)


def test_two_kernels_a_step_on_a_gpu(lowered_for_a_gpu):
    text = lowered_for_a_gpu(
        lambda z: broyden(jnp.cos, z, max_steps=5, pallas=True).z,
        jax.ShapeDtypeStruct((2, 40), jnp.float32),
    )
    assert text.count("__gpu$xla.gpu.triton") == 2
