"""A sample is CONVERGED only if its recomputed residual is under tol: any type, size and scale."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdeq_jax.solvers import SOLVERS, Status, broyden

TYPES = {"float16": (-3, 4), "bfloat16": (-30, 30), "float32": (-30, 30)}  # powers of ten
TOL = 1e-2


def affine(slope, offset, z):
    return z * slope + offset


@cache
def compiled(name):
    """`(slope, offset, z0) -> Solution`, compiled once for each shape and type."""
    solver = SOLVERS[name]

    def solve(slope, offset, z0):
        return solver(lambda z: affine(slope, offset, z), z0, max_steps=12, tol=TOL)

    return jax.jit(solve)


def recomputed(slope, offset, z):
    """The relative residual in float64, of f(z) as rounded to its type."""
    fz = np.asarray(affine(slope, offset, z), np.float64)
    distance = np.linalg.norm(fz - np.asarray(z, np.float64), axis=1)
    return distance / np.where(distance == 0, 1, np.linalg.norm(fz, axis=1))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 64])
def test_converged_means_that_the_residual_is_under_tol(name, dtype, size):
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(power=st.integers(*TYPES[dtype]), slope=st.sampled_from([-0.9, 0.0, 0.3, 0.5, 0.97]))
    def run(power, slope):
        offset = np.linspace(0.5, 1.0, 2 * size).reshape(2, size) * 10.0**power
        arguments = jnp.asarray(slope, dtype), jnp.asarray(offset, dtype)
        solution = compiled(name)(*arguments, jnp.zeros((2, size), dtype))
        residual = recomputed(*arguments, solution.z)
        assert (np.isfinite(np.asarray(solution.z, np.float32))).all()
        np.testing.assert_allclose(solution.rel_residual, residual, rtol=1e-4, atol=1e-6)
        assert (residual < TOL)[solution.status == Status.CONVERGED].all()
        if -16 < power < 16 and slope in (0.0, 0.3, 0.5):
            assert (solution.status == Status.CONVERGED).all()

    run()


@pytest.mark.parametrize("name", SOLVERS)
def test_float16_of_the_report(name):
    half = jnp.asarray(0.5, jnp.float16)
    solution = compiled(name)(half, half[None, None], jnp.zeros((1, 64), jnp.float16))
    assert solution.status[0] == Status.CONVERGED
    assert solution.rel_residual.dtype == jnp.float32
    assert recomputed(half, half[None, None], solution.z)[0] < 1e-2


def test_the_norm_of_one_zero():
    solution = jax.jit(lambda z0: broyden(lambda z: z * 0.5 + 0.5, z0, tol=1e-2))(jnp.zeros((1, 1)))
    assert solution.status[0] == Status.CONVERGED
    assert solution.z[0, 0] == 1


def test_steps_too_small_for_broydens_squares_end_it_stalled():
    """In float32 their squares are zero. The other solvers go on."""
    slope = jnp.asarray([0.3, 0.5, 0.9, -0.5], jnp.float32)
    offset = jnp.full((2, 4), 1e-25, jnp.float32)
    for name in SOLVERS:
        solution = SOLVERS[name](
            lambda z: affine(slope[None], offset, z), jnp.zeros((2, 4)), max_steps=60, tol=TOL
        )
        expected = Status.STALLED if name == "broyden" else Status.CONVERGED
        assert (solution.status == expected).all()
        residual = recomputed(slope[None], offset, solution.z)
        np.testing.assert_allclose(solution.rel_residual, residual, rtol=1e-4)
        assert (residual < TOL).all() == (name != "broyden")
