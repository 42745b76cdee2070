"""Broyden's Pallas kernels: compared with the reference form, and lowered for a GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.kernels import broyden_history
from mdeq_jax.solvers import broyden
from tests.helpers.jaxprs import primitives

BATCH, ROWS, FEATURES = 3, 5, 75


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(broyden_history, "STRETCH", 32)


@pytest.mark.parametrize("filled", range(ROWS + 1))
@pytest.mark.parametrize("stored", ["float64", "bfloat16"])
def test_reads_only_filled_rows(filled, stored, as_on_gpu, x64):
    """Rows beyond the filled ones are not read, except row 0 before there is any step."""
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

    reference, ours = solve(False), as_on_gpu(solve, True)
    assert ours.nfe == reference.nfe < 31
    np.testing.assert_array_equal(ours.status, reference.status)
    np.testing.assert_allclose(ours.z, reference.z, atol=1e-8)
    # With a history in bfloat16 the reference form rounds the other factor too.
    rtol = 1e-3 if history_dtype else 1e-9
    np.testing.assert_allclose(ours.rel_trace[:8], reference.rel_trace[:8], rtol=rtol)


def test_two_kernels_a_step_on_a_gpu(lowered_for_a_gpu):
    def solve(z):
        return broyden(jnp.cos, z, max_steps=5, pallas=True).z

    shape = jax.ShapeDtypeStruct((2, 40), jnp.float32)
    assert "triton" in lowered_for_a_gpu(solve, shape)
    with hardware.compiling_for("gpu"):
        assert primitives(solve, shape)["pallas_call"] == 2
