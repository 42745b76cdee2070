"""`unroll` and `reversible`: the gradients that bring their own forward iteration."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import BackwardStats, equilibrium, reversible, unroll
from mdeq_jax.solvers import Status
from tests.helpers.cells import (
    BATCH,
    assert_trees_close,
    loss,
    problem,
    start,
    tanh_cell,
    tree_cell,
    value,
)

STEPS = 5


def plain_unroll(cell, params, x, tau, steps=STEPS):
    z, states = start(cell), []
    for _ in range(steps):
        states.append(z)
        z = jax.tree.map(lambda a, b: (1 - tau) * a + tau * b, z, cell(params, z, x))
    return z, states


def plain_reversible(cell, params, x, beta, steps=STEPS):
    y = z = start(cell)
    ys = []
    for _ in range(steps):
        y = jax.tree.map(lambda a, b: (1 - beta) * a + beta * b, y, cell(params, z, x))
        z = jax.tree.map(lambda a, b: (1 - beta) * a + beta * b, z, cell(params, y, x))
        ys.append(y)
    return z, ys


CASES = [
    (unroll, {"tau": 1.0}, plain_unroll),
    (unroll, {"tau": 0.6, "remat": True}, plain_unroll),
    (reversible, {"beta": 0.5}, plain_reversible),
    (reversible, {"beta": 1.3}, plain_reversible),
]


@pytest.mark.parametrize("cell", [tanh_cell, tree_cell])
@pytest.mark.parametrize(("gradient", "settings", "plain"), CASES)
def test_gradient_is_that_of_plain_backpropagation(cell, gradient, settings, plain, x64):
    params, x = problem()
    weight = next(iter(settings.values()))

    @jax.jit
    def both(params, x, budget):
        ours = partial(loss, cell, gradient=partial(gradient, steps=STEPS, **settings))
        definition = lambda *args: value(plain(cell, *args, weight)[0])  # noqa: E731
        fewer = lambda *args: value(plain(cell, *args, weight, steps=2)[0])  # noqa: E731
        return [
            jax.value_and_grad(f, argnums=(0, 1))(params, x)
            for f in (ours, definition, partial(ours, step_budget=budget), fewer)
        ]

    ours, definition, cut, fewer = both(params, x, 2)
    assert_trees_close(ours, definition, rtol=1e-10)
    assert_trees_close(cut, fewer, rtol=1e-10)


@pytest.mark.parametrize(("gradient", "settings", "plain"), CASES[::2])
def test_the_report_is_of_the_last_state_that_f_was_evaluated_at(gradient, settings, plain, x64):
    params, x = problem()

    @jax.jit
    def run(budget):
        solution = equilibrium(
            tanh_cell,
            params,
            x,
            start(tanh_cell),
            gradient=partial(gradient, steps=7, tol=0.2, **settings),
            step_budget=budget,
        )[1]
        states = plain(tanh_cell, params, x, *settings.values())[1]
        return solution, states, [tanh_cell(params, z, x) for z in states]

    solution, states, images = jax.device_get(run(STEPS))
    residuals = np.linalg.norm(np.array(images) - np.array(states), axis=2)
    np.testing.assert_allclose(solution.z, states[-1], atol=1e-12)
    np.testing.assert_allclose(solution.residual, residuals[-1], rtol=1e-10)
    np.testing.assert_allclose(solution.abs_trace[:STEPS], residuals, rtol=1e-10)
    assert np.isnan(solution.abs_trace[STEPS:]).all() and solution.abs_trace.shape[0] == 7
    sizes = np.linalg.norm(images[-1], axis=1)
    np.testing.assert_allclose(solution.rel_residual, residuals[-1] / sizes, rtol=1e-6)
    assert solution.nfe == STEPS * (2 if gradient is reversible else 1)
    assert (solution.steps == STEPS).all()
    converged = solution.rel_residual < 0.2
    np.testing.assert_array_equal(solution.status == Status.CONVERGED, converged)


def test_the_solver_is_not_run():
    params, x = problem()

    def refuse(*_, **__):
        raise AssertionError

    for gradient in ("unroll", "reversible"):
        run = partial(loss, tanh_cell, f_solver=refuse, b_solver=refuse, gradient=gradient)
        jax.eval_shape(run, params, x)


def temporary_bytes(gradient, steps):
    size = 2048

    def total(params):
        x = jnp.ones((8, size))
        bound = partial(gradient, steps=steps)
        cell = lambda params, z, x: jnp.tanh(params[None] * z + x)  # noqa: E731
        return jnp.sum(equilibrium(cell, params, x, jnp.zeros_like(x), gradient=bound)[0])

    compiled = jax.jit(jax.grad(total)).lower(jnp.ones(size)).compile()
    return compiled.memory_analysis().temp_size_in_bytes, 8 * size * 4


def test_reversible_needs_the_same_memory_for_any_number_of_steps():
    (few, state), (many, _) = (temporary_bytes(reversible, n) for n in (10, 100))
    assert many - few <= 4 * 90 * 8 * 4 < state  # the two traces are all that grows
    (few, _), (many, _) = (temporary_bytes(unroll, n) for n in (10, 100))
    assert many - few >= 90 * state


def test_the_drift_of_rebuilt_states_is_reported():
    params, x = jax.tree.map(lambda a: a.astype(jnp.float32), problem())

    def of(params, stats, steps, beta):
        gradient = partial(reversible, steps=steps, beta=beta)
        return loss(tanh_cell, params, x, gradient=gradient, backward_stats=stats)

    @jax.jit
    def stats_and_gradients(params, stats):
        return [jax.grad(of, (0, 1))(params, stats, *s) for s in ((8, 0.5), (16, 0.5), (30, 0.8))]

    results = stats_and_gradients(params, BackwardStats.zeros(BATCH))
    (_, good), (_, fair), (_, lost) = jax.device_get(results)
    assert (good.rel_residual < 1e-4).all() and (good.status == Status.CONVERGED).all()
    assert (fair.rel_residual > 3 * good.rel_residual).all()  # 2^8 times the rounding
    assert (lost.status == Status.DIVERGED).all()
    assert good.nfe == 16 and (good.steps == 8).all()


def test_bad_arguments():
    params, x = problem()
    bad = [
        (unroll, {"steps": 0}, "must be at least 1; got 0"),
        (unroll, {"tau": 0.0}, r"tau, the damping, must be in \(0, 1\]; got 0.0"),
        (unroll, {"stop_mode": "max"}, "stop_mode must be one of"),
        (reversible, {"beta": 1}, r"must be in \(0, 2\) and not 1; got 1"),
        (reversible, {"beta": 2.0}, r"must be in \(0, 2\) and not 1; got 2.0"),
        (reversible, {"tol": -1.0}, "tol must not be negative; got -1.0"),
    ]
    for gradient, settings, message in bad:
        with pytest.raises(ValueError, match=message):
            loss(tanh_cell, params, x, gradient=partial(gradient, **settings))
