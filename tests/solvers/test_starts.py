"""Where a solve starts and how far it may go: warm starts and step budgets."""

import chex
import jax
import numpy as np
import pytest

from mdeq_jax.solvers import SOLVERS, Status
from tests.helpers.sample_maps import compiled, mixed_batch, stack

STEPS = 60
SETTINGS = dict(max_steps=STEPS, tol=1e-10)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.fixture
def batch(x64):
    samples, starts = mixed_batch()
    return stack(samples.values()), starts


@every_solver
def test_a_solution_is_its_own_solution(solver, batch):
    maps, starts = batch
    solve = compiled(solver, **SETTINGS)
    cold = solve(maps, starts, STEPS)
    again = solve(maps, np.asarray(cold.z), STEPS)
    solved = np.asarray(cold.status) == Status.CONVERGED
    assert solved.sum() >= 4
    assert (np.asarray(again.status) == Status.CONVERGED)[solved].all()
    assert (np.asarray(again.steps) == 0)[solved].all()
    np.testing.assert_array_equal(again.z[solved], cold.z[solved])
    # The others went on from where they were: none is worse for it, but for the rounding of f,
    # which the compiler may compute otherwise for the start than inside the loop.
    assert (again.rel_residual <= cold.rel_residual * (1 + 1e-12) + 1e-14).all()


@every_solver
def test_a_good_guess_saves_steps(solver, batch):
    maps, starts = batch
    solve = compiled(solver, **SETTINGS)
    cold = solve(maps, starts, STEPS)
    solved = (np.asarray(cold.status) == Status.CONVERGED) & (np.asarray(cold.steps) > 8)
    assert solved.any()
    guess = np.asarray(cold.z) * (1 + 1e-7)
    warm = solve(maps, guess, STEPS)
    assert (warm.status[solved] == Status.CONVERGED).all()
    assert (warm.steps[solved] < cold.steps[solved]).all()
    z = np.asarray(cold.z)[solved]
    error = np.linalg.norm(warm.z[solved] - z, axis=1) / np.linalg.norm(z, axis=1)
    assert (error < 1e-7).all()  # tol times the condition number, 100


@every_solver
def test_a_known_value_at_the_start_saves_an_evaluation(solver, x64):
    matrix = np.array([[0.3, -0.5], [0.4, 0.2]])
    constant = jax.random.normal(jax.random.key(0), (3, 2))
    evaluated = []

    def f(z):
        jax.debug.callback(lambda z: evaluated.append(z), z)
        return z @ matrix + constant

    plain, known = (
        jax.device_get(solver(f, np.zeros((3, 2)), max_steps=9, tol=1e-6, fz0=fz0))
        for fz0 in (None, constant)
    )
    jax.effects_barrier()
    assert len(evaluated) == plain.nfe + known.nfe and known.nfe == plain.nfe - 1
    chex.assert_trees_all_equal(plain._replace(nfe=0), known._replace(nfe=0))


@every_solver
def test_a_start_that_is_not_finite_is_given_up_and_harms_nobody(solver, batch):
    maps, starts = batch
    solve = compiled(solver, **SETTINGS)
    sound = solve(maps, starts, STEPS)
    spoilt = starts.copy()
    spoilt[2, 1], spoilt[3] = np.nan, np.inf
    sol = solve(maps, spoilt, STEPS)
    assert (sol.status[2:4] == Status.DIVERGED).all()
    np.testing.assert_array_equal(sol.z[2:4], 0)
    assert np.isnan(sol.abs_trace[:, 2:4]).all()
    others = np.delete(np.arange(len(starts)), [2, 3])
    np.testing.assert_array_equal(sol.z[others], sound.z[others])
    np.testing.assert_array_equal(sol.status[others], sound.status[others])


@every_solver
def test_step_budget_cuts_the_same_solve_short(solver, batch):
    maps, starts = batch
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def solve(maps, z0, budget):
        return solver(maps, z0, step_budget=budget, **SETTINGS)

    full = solve(maps, starts, STEPS)
    for budget in (0, 1, 7, STEPS + 40):
        sol = solve(maps, starts, budget)
        done = min(budget, STEPS)
        assert sol.nfe == min(done + 1, full.nfe)
        np.testing.assert_array_equal(sol.rel_trace[:done], full.rel_trace[:done])
        assert np.isnan(sol.rel_trace[done:]).all()
        cut_short = (
            np.isfinite(full.rel_trace[done]) if done < STEPS else np.zeros(len(starts), bool)
        )
        assert (sol.status[cut_short] == Status.MAX_STEPS).all()
        assert (sol.steps <= done).all()
