"""Solvers on maps whose fixed points are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.solvers import SOLVERS, Status, anderson, broyden, fixed_point_iteration

QUASI_NEWTON = [broyden, anderson]


def affine(size, eigenvalues, batch=3, seed=0):
    """z -> A z + b with the given eigenvalues, and its fixed points `[batch, size]`."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    a = basis @ np.diag(eigenvalues) @ basis.T
    b = rng.normal(size=(batch, size))
    fixed = np.linalg.solve(np.eye(size) - a, b.T).T
    return (lambda z: z @ jnp.asarray(a.T) + jnp.asarray(b)), fixed


@pytest.mark.parametrize("solver", QUASI_NEWTON)
@pytest.mark.parametrize("radius", [0.9, -1.5])
@pytest.mark.parametrize("size", [1, 5, 8])
def test_affine(solver, radius, size, x64):
    f, fixed = affine(size, np.linspace(radius, 0.1 * radius, size))
    sol = solver(f, jnp.zeros((3, size)), max_steps=60, tol=1e-13, **_wide(solver))
    np.testing.assert_allclose(sol.z, fixed, rtol=0, atol=1e-10)
    assert (sol.status == Status.CONVERGED).all()


def _wide(solver):
    return {"m": 9} if solver is anderson else {}


def test_broyden_ends_in_twice_the_dimension(x64):
    """On an affine map: Gay 1979, Some convergence properties of Broyden's method."""
    f, _ = affine(6, np.linspace(0.9, -1.5, 6))
    sol = broyden(f, jnp.zeros((3, 6)), max_steps=40, tol=1e-12)
    assert sol.nfe <= 2 * 6 + 1


def test_plain_iteration_cannot_solve_radius_above_one(x64):
    f, _ = affine(5, np.linspace(-1.5, -0.1, 5))
    sol = fixed_point_iteration(f, jnp.zeros((3, 5)), max_steps=200, tol=1e-10, stop_mode="abs")
    assert (sol.status == Status.DIVERGED).all()
    assert jnp.isfinite(sol.z).all()


def test_damping_solves_what_plain_iteration_cannot(x64):
    f, fixed = affine(5, np.linspace(-1.5, -0.1, 5))
    sol = fixed_point_iteration(f, jnp.zeros((3, 5)), max_steps=200, tol=1e-12, tau=0.5)
    np.testing.assert_allclose(sol.z, fixed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", QUASI_NEWTON)
def test_rotation_by_90_degrees(solver, x64):
    quarter = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    b = jnp.array([[1.0, 2.0], [-3.0, 0.5]])
    fixed = np.linalg.solve(np.eye(2) - quarter.T, b.T).T
    sol = solver(lambda z: z @ quarter + b, jnp.zeros((2, 2)), max_steps=40, tol=1e-13)
    np.testing.assert_allclose(sol.z, fixed, rtol=0, atol=1e-10)
    assert (sol.status == Status.CONVERGED).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
def test_cosine(solver, stop_mode, x64):
    sol = solver(jnp.cos, jnp.zeros((2, 3)), max_steps=100, tol=1e-12, stop_mode=stop_mode)
    np.testing.assert_allclose(sol.z, 0.739085133215160641655, atol=1e-10)


@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
def test_passing_by_f_of_z_near_zero_is_not_divergence(stop_mode, x64):
    """From 0 the first step lands where f is 0, and the relative residual is infinite."""
    sol = broyden(lambda z: 2 - z, jnp.zeros((1, 1)), max_steps=10, tol=1e-10, stop_mode=stop_mode)
    assert sol.status[0] == Status.CONVERGED
    np.testing.assert_allclose(sol.z, 1.0)


def textbook_broyden(f, z, steps):
    """Broyden's good method with a dense inverse Jacobian of g(z) = f(z) - z."""
    g, inverse, iterates = f(z) - z, -np.eye(z.size), []
    for _ in range(steps):
        delta = -inverse @ g
        z = z + delta
        new_g = f(z) - z
        change = new_g - g
        v = inverse.T @ delta
        inverse = inverse + np.outer((delta - inverse @ change) / (v @ change), v)
        g = new_g
        iterates.append(z)
    return iterates


def test_lean_broyden_is_broyden(x64):
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(9, 9)) / 3, rng.normal(size=9)
    iterates = textbook_broyden(lambda z: np.tanh(w @ z + b), np.zeros(9), 10)
    for steps in (1, 2, 5, 10):
        f = lambda z: jnp.tanh(z @ w.T + b[None])  # noqa: E731
        sol = broyden(f, jnp.zeros((1, 9)), max_steps=steps, tol=0.0)
        expected = min(iterates[:steps], key=lambda z: _relative(w, b, z))
        np.testing.assert_allclose(sol.z[0], expected, rtol=0, atol=1e-9)
        residuals = [_relative(w, b, z) for z in iterates[:steps]]
        np.testing.assert_allclose(sol.rel_trace[:, 0], residuals, rtol=1e-5, atol=1e-12)


def _relative(w, b, z):
    fz = np.tanh(w @ z + b)
    return np.linalg.norm(fz - z) / np.linalg.norm(fz)


HARD = ["contraction", "no fixed point", "blows up", "turns NaN", "starts solved"]


def hard_batch(z):
    """Five maps that must not disturb each other; names in `HARD`."""
    return jnp.stack(
        [
            0.5 * jnp.cos(z[0]) + 1,
            z[1] + 1,
            z[2] ** 2 + 3,
            jnp.where(jnp.abs(z[3]) > 0.5, jnp.nan, 0.2 * z[3] + 0.6),
            0.3 * z[4],
        ]
    )


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_bad_sample_is_flagged_and_harms_nobody(solver, x64):
    sol = solver(hard_batch, jnp.zeros((5, 4)), max_steps=50, tol=1e-11)
    alone = solver(lambda z: 0.5 * jnp.cos(z) + 1, jnp.zeros((1, 4)), max_steps=50, tol=1e-11)
    np.testing.assert_allclose(sol.z[0], alone.z[0], rtol=1e-12)
    assert sol.status[0] == Status.CONVERGED and sol.steps[0] == alone.steps[0]
    assert (sol.status[1:4] != Status.CONVERGED).all(), sol.status
    assert sol.status[3] == Status.DIVERGED
    assert sol.status[4] == Status.CONVERGED and sol.steps[4] == 0 and (sol.z[4] == 0).all()
    assert jnp.isfinite(sol.z).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_early_stopping_changes_no_other_sample(solver, x64):
    rate = jnp.array([0.1, 0.5, 0.9])[:, None]
    f = lambda rate, z: rate * jnp.sin(z) + 1  # noqa: E731
    together = solver(partial(f, rate), jnp.zeros((3, 4)), max_steps=60, tol=1e-9)
    for i in range(3):
        alone = solver(partial(f, rate[i : i + 1]), jnp.zeros((1, 4)), max_steps=60, tol=1e-9)
        np.testing.assert_allclose(together.z[i], alone.z[0], rtol=1e-13)
        assert together.steps[i] == alone.steps[0]


@pytest.mark.parametrize("solver", QUASI_NEWTON)
def test_float32_in_200000_dimensions(solver):
    shift = jax.random.normal(jax.random.key(0), (2, 200_000))
    f = lambda z: 0.9 * jnp.cos(z) + shift  # noqa: E731
    sol = jax.jit(partial(solver, f, max_steps=40, tol=1e-5))(jnp.zeros((2, 200_000)))
    assert (sol.status == Status.CONVERGED).all()
    recomputed = jnp.linalg.norm(f(sol.z) - sol.z, axis=1) / jnp.linalg.norm(f(sol.z), axis=1)
    np.testing.assert_allclose(recomputed, sol.rel_residual, rtol=1e-3)
    assert (recomputed < 1e-5).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_history_type(dtype):
    shift = jax.random.normal(jax.random.key(0), (2, 500))
    f = lambda z: 0.9 * jnp.cos(z) + shift  # noqa: E731
    sol = broyden(f, jnp.zeros((2, 500)), max_steps=40, tol=1e-4, history_dtype=dtype)
    assert sol.z.dtype == jnp.float32
    assert (sol.status == Status.CONVERGED).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_step_budget_is_traced(solver, x64):
    f, _ = affine(8, np.linspace(0.95, 0.1, 8))
    solve = jax.jit(lambda n: solver(f, jnp.zeros((3, 8)), max_steps=20, tol=0.0, step_budget=n))
    full = solve(20)
    for budget in (0, 1, 7, 25):
        sol = solve(budget)
        done = min(budget, 20)
        assert sol.nfe == done + 1
        np.testing.assert_allclose(sol.rel_trace[:done], full.rel_trace[:done], rtol=1e-12)
        assert jnp.isnan(sol.rel_trace[done:]).all()
    assert solve._cache_size() == 1


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_report_is_truthful(solver, x64):
    f, _ = affine(6, np.linspace(0.9, -0.9, 6))
    calls = []

    def counted(z):
        jax.debug.callback(lambda: calls.append(1))
        return f(z)

    sol = solver(counted, jnp.zeros((3, 6)), max_steps=9, tol=1e-30)
    jax.effects_barrier()
    assert sol.nfe == len(calls) == 10
    assert (sol.status == Status.MAX_STEPS).all()
    residual = np.linalg.norm(f(sol.z) - sol.z, axis=1)
    np.testing.assert_allclose(sol.residual, residual, rtol=1e-9)
    np.testing.assert_allclose(
        sol.rel_residual, residual / np.linalg.norm(f(sol.z), axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(sol.rel_residual, np.nanmin(sol.rel_trace, axis=0))
    np.testing.assert_array_equal(sol.steps, 1 + np.nanargmin(sol.rel_trace, axis=0))


def test_stalls_where_the_residual_lies_flat(x64):
    """The original's rule: under 3 tol, within a factor 1.3 for 30 steps."""
    f = lambda z: z + jnp.where(z < 5, 1.0, 2e-3)  # noqa: E731, under 3 tol and going nowhere
    sol = fixed_point_iteration(f, jnp.zeros((1, 1)), max_steps=200, tol=1e-3, stop_mode="abs")
    assert sol.status[0] == Status.STALLED
    assert 31 <= sol.nfe <= 5 + 33


def test_anderson_survives_a_singular_gram_matrix():
    """A constant map makes all residuals but the first zero; D = 2 is far below m."""
    sol = anderson(lambda z: jnp.full_like(z, 2.0), jnp.zeros((2, 2)), max_steps=20, tol=0.0)
    np.testing.assert_array_equal(sol.z, 2.0)
    f = lambda z: jnp.array([[0.5, -0.5]]) * z + 1  # noqa: E731
    sol = anderson(f, jnp.zeros((1, 2)), max_steps=60, m=12, tol=1e-6)
    assert jnp.isfinite(sol.z).all() and sol.status[0] == Status.CONVERGED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1; got 0"),
        ({"tol": -1.0}, "tol must not be negative; got -1"),
        ({"stop_mode": "relative"}, r"one of \('rel', 'abs'\); got 'relative'"),
    ],
)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bad_arguments(solver, arguments, message):
    with pytest.raises(ValueError, match=message):
        solver(jnp.cos, jnp.zeros((1, 2)), **arguments)


def test_bad_maps_and_states():
    with pytest.raises(ValueError, match="two axes"):
        broyden(jnp.cos, jnp.zeros(3))
    with pytest.raises(TypeError, match="floating-point"):
        broyden(jnp.cos, jnp.zeros((1, 3), int))
    with pytest.raises(ValueError, match="its argument's shape"):
        broyden(lambda z: z[:, :1], jnp.zeros((1, 3)))
    with pytest.raises(TypeError, match="keep its argument's type"):
        broyden(lambda z: z.astype(jnp.bfloat16), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="m, the number"):
        anderson(jnp.cos, jnp.zeros((1, 3)), m=0)
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\]; got 0"):
        anderson(jnp.cos, jnp.zeros((1, 3)), beta=0)
    with pytest.raises(ValueError, match=r"tau must be in \(0, 1\]; got 2"):
        fixed_point_iteration(jnp.cos, jnp.zeros((1, 3)), tau=2)
