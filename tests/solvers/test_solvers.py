"""Solvers on maps whose fixed points are known, their reports and their errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.solvers import SOLVERS, Status, anderson, broyden, fixed_point_iteration
from tests.helpers.jaxprs import loop_shapes
from tests.helpers.sample_maps import compiled, stack

QUASI_NEWTON = [broyden, anderson]
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def affine(size, eigenvalues, batch=3, seed=0):
    """A and b `[batch, size]` of z -> A z + b with the given eigenvalues."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis @ np.diag(eigenvalues) @ basis.T, rng.normal(size=(batch, size))


def as_map(a, b):
    return lambda z: z @ jnp.asarray(a.T) + jnp.asarray(b)


def fixed_points(a, b):
    return np.linalg.solve(np.eye(len(a)) - a, b.T).T


def padded(a, b, size=8):
    """Samples `(A, b)` of `size` dimensions; those beyond the map's own stay zero."""
    missing = size - len(a)
    a = np.pad(a, (0, missing))
    return [(a, np.pad(row, (0, missing))) for row in b]


AFFINE = {
    (size, radius): affine(size, np.linspace(radius, 0.1 * radius, size))
    for size in (1, 5, 8)
    for radius in (0.9, -1.5)
}
AFFINE["rotation by 90 degrees"] = (
    np.array([[0.0, -1.0], [1.0, 0.0]]),
    np.array([[1.0, 2.0], [-3.0, 0.5]]),
)
# From 0 the first step lands where f is 0, and the relative residual is infinite: no divergence.
AFFINE["passes by f(z) = 0"] = -np.eye(1), np.full((1, 1), 2.0)
AFFINE["six dimensions"] = affine(6, np.linspace(0.9, -1.5, 6))

# z = A z + b of one to eight dimensions, and a cosine: `(maps, start, fixed points)`.
COSINE = np.eye(8), np.zeros(8), "plain cosine"


def known_maps():
    maps = stack([sample for a, b in AFFINE.values() for sample in padded(a, b)] + [COSINE])
    fixed = [np.pad(fixed_points(a, b), ((0, 0), (0, 8 - len(a)))) for a, b in AFFINE.values()]
    fixed.append(np.full((1, 8), 0.739085133215160641655))
    return maps, np.zeros(maps.b.shape), np.concatenate(fixed)


@pytest.mark.parametrize("solver", QUASI_NEWTON)
@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
def test_maps_with_known_fixed_points(solver, stop_mode, x64):
    options = {"m": 9} if solver is anderson else {}
    maps, z0, fixed = known_maps()
    solve = compiled(solver, max_steps=60, tol=1e-13, stop_mode=stop_mode, **options)
    sol = solve(maps, z0, 60)
    np.testing.assert_allclose(sol.z, fixed, rtol=0, atol=1e-10)
    assert (sol.status == Status.CONVERGED).all()
    if solver is broyden:
        # Twice the dimension: Gay 1979, Some convergence properties of Broyden's method.
        assert (sol.rel_trace[: 2 * 6, -4:-1].min(axis=0) < 1e-12).all()


@pytest.mark.parametrize(("stop_mode", "tau"), [("abs", 1.0), ("rel", 0.5)])
def test_damping_solves_what_plain_iteration_cannot(stop_mode, tau, x64):
    maps, z0, fixed = known_maps()
    options = dict(max_steps=400, tol=1e-12, stop_mode=stop_mode, tau=tau)
    sol = compiled(fixed_point_iteration, **options)(maps, z0, 400)
    rate = abs(1 - tau + tau * np.linalg.eigvals(maps.a)).max(axis=1)
    rate[-1] = 0.7  # the cosine
    solved, lost = rate < 0.91, rate > 1.1
    np.testing.assert_allclose(sol.z[solved], fixed[solved], rtol=0, atol=1e-10)
    assert (sol.status[lost] == Status.DIVERGED).all()
    assert np.isfinite(sol.z).all()
    assert lost.sum() > 9 if tau == 1 else not lost.any()


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
    solve = compiled(broyden, max_steps=10, tol=0.0)
    for steps in (1, 2, 5, 10):
        sol = solve(stack([(w, b, "tanh")]), np.zeros((1, 9)), steps)
        expected = min(iterates[:steps], key=lambda z: _relative(w, b, z))
        np.testing.assert_allclose(sol.z[0], expected, rtol=0, atol=1e-9)
        residuals = [_relative(w, b, z) for z in iterates[:steps]]
        np.testing.assert_allclose(sol.rel_trace[:steps, 0], residuals, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("keep_inverse", [False, True])
def test_broyden_holds_the_steps_that_are_read_again(steps, keep_inverse, x64):
    shift = jax.random.normal(jax.random.key(0), (3, 40))
    f = lambda z: 0.9 * jnp.cos(z) + shift  # noqa: E731
    solve = partial(broyden, f, jnp.zeros((3, 40)), tol=0.0, keep_inverse=keep_inverse)
    exact, roomy = solve(max_steps=steps), solve(max_steps=30, step_budget=steps)
    np.testing.assert_allclose(exact.z, roomy.z, rtol=1e-12)
    rows = {shape[1] for shape in loop_shapes(partial(solve, max_steps=steps)) if len(shape) == 3}
    assert rows == {steps if keep_inverse else max(steps - 1, 1)}


def _relative(w, b, z):
    fz = np.tanh(w @ z + b)
    return np.linalg.norm(fz - z) / np.linalg.norm(fz)


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
    solve = jax.jit(partial(broyden, f, max_steps=40, tol=1e-4, history_dtype=dtype))
    sol = solve(jnp.zeros((2, 500)))
    assert sol.z.dtype == jnp.float32
    assert (sol.status == Status.CONVERGED).all()


@pytest.mark.parametrize("solver", QUASI_NEWTON)
def test_bfloat16_states(solver):
    """With eight bits: as near as the type allows, in the type of the start."""
    f = lambda z: (0.5 * jnp.cos(z) + 1).astype(z.dtype)  # noqa: E731
    sol = jax.jit(partial(solver, f, max_steps=20, tol=2e-2))(jnp.zeros((2, 50), jnp.bfloat16))
    assert sol.z.dtype == jnp.bfloat16
    assert (sol.status == Status.CONVERGED).all()
    np.testing.assert_allclose(sol.z.astype(np.float32), 1.187151438466767, rtol=2e-2)


@every_solver
def test_report_is_truthful(solver, x64):
    f = as_map(*affine(6, np.linspace(0.9, -0.9, 6)))
    calls = []

    def counted(z):
        jax.debug.callback(lambda: calls.append(1))
        return f(z)

    sol = jax.jit(partial(solver, counted, max_steps=9, tol=1e-30))(np.zeros((3, 6)))
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
    solve = partial(fixed_point_iteration, f, max_steps=200, tol=1e-3, stop_mode="abs")
    sol = jax.jit(solve)(np.zeros((1, 1)))
    assert sol.status[0] == Status.STALLED
    assert 31 <= sol.nfe <= 5 + 33


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1; got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be an integer of at least 1; got 1.5"),
        ({"tol": -1.0}, ValueError, "tol must not be negative; got -1"),
        ({"tol": float("nan")}, ValueError, "tol must not be negative; got nan"),
        ({"stop_mode": "relative"}, ValueError, r"one of \('rel', 'abs'\); got 'relative'"),
        ({"step_budget": -1}, ValueError, "step_budget must not be negative; got -1"),
        ({"step_budget": 2.0}, TypeError, "step_budget must be one integer .* got float"),
        ({"step_budget": np.array([1, 2])}, TypeError, r"one integer .* of shape \(2,\)"),
    ],
)
@every_solver
def test_bad_arguments(solver, arguments, error, message):
    with pytest.raises(error, match=message):
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
    with pytest.raises(ValueError, match="history_dtype must be None"):
        broyden(jnp.cos, jnp.zeros((1, 3)), history_dtype="int8")
    with pytest.raises(ValueError, match=r"tau must be in \(0, 1\]; got 2"):
        fixed_point_iteration(jnp.cos, jnp.zeros((1, 3)), tau=2)
