"""Deep supervision against its written-out definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import (
    correction_weights,
    fixed_point_correction,
    phantom,
    supervised_states,
)
from mdeq_jax.solvers import anderson, broyden, fixed_point_iteration
from tests.helpers.cells import (
    SOLVE,
    assert_trees_close,
    problem,
    start,
    tanh_cell,
    tree_cell,
    value,
)

STEPS = (2, 3, 6)


@pytest.mark.parametrize(
    ("cell", "solver"),
    [(tanh_cell, broyden), (tanh_cell, anderson), (tree_cell, fixed_point_iteration)],
)
def test_states_losses_and_gradients(cell, solver, x64):
    params, x = problem()
    weights = correction_weights("exponential", 3, 0.7)
    np.testing.assert_allclose(weights, [0.49, 0.7, 1])

    @jax.jit
    def ours(params):
        def total(params):
            states, _ = supervised_states(
                cell,
                params,
                x,
                start(cell),
                steps=STEPS,
                f_solver=partial(solver, max_steps=8, tol=0.0),
                gradient=partial(phantom, steps=2, tau=0.5),
            )
            losses = jnp.stack([value(z) ** 2 for z in states])
            return fixed_point_correction(losses, weights), states

        return jax.value_and_grad(total, has_aux=True)(params)

    @jax.jit
    def definition(params):
        def total(params, fixed):
            flat = lambda z: jnp.concatenate([a.reshape(3, -1) for a in jax.tree.leaves(z)], 1)  # noqa: E731

            def unflat(z):
                if cell is tanh_cell:
                    return z
                return {"first": z[:, :2], "second": z[:, 2:].reshape(3, 2, 2)}

            f = lambda z: flat(cell(fixed, unflat(z), x))  # noqa: E731
            result = 0
            for step, weight in zip(STEPS, (0.49, 0.7, 1.0)):
                # As far as a solve of that many steps comes.
                z = unflat(solver(f, flat(start(cell)), max_steps=step, tol=0.0).z)
                for _ in range(2):
                    image = cell(params, z, x)
                    z = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, z, image)
                result += weight * value(z) ** 2
            return result

        return jax.value_and_grad(total)(params, params)

    (total, states), gradient = ours(params)
    assert jax.tree.structure(states[0]) == jax.tree.structure(start(cell))
    assert_trees_close((total, gradient), definition(params), rtol=1e-9)


def test_samples_that_end_early_are_taken_where_they_ended(x64):
    params, x = problem()
    states, solution = supervised_states(
        tanh_cell, params, x, start(tanh_cell), steps=(3, 40, 60), f_solver=SOLVE
    )
    assert solution.steps.max() < 40 and solution.recorded == ()
    np.testing.assert_array_equal(states[1], states[2])
    np.testing.assert_allclose(states[1], tanh_cell(params, solution.z, x), atol=1e-12)
    assert np.abs(states[0] - states[1]).max() > 1e-4


def test_weights():
    np.testing.assert_array_equal(correction_weights("constant", 3), [1, 1, 1])
    np.testing.assert_allclose(correction_weights("linear", 4, 0.5), [0.625, 0.75, 0.875, 1])
    np.testing.assert_allclose(correction_weights("linear", 2), [0.55, 1])
    np.testing.assert_allclose(correction_weights("exponential", 3), [0.64, 0.8, 1])
    losses = jnp.arange(6.0).reshape(3, 2)  # a loss for each of two samples
    np.testing.assert_allclose(fixed_point_correction(losses, [1, 2, 3]), [16, 22])


def test_bad_arguments():
    params, x = problem()
    states = partial(supervised_states, tanh_cell, params, x, start(tanh_cell))
    with pytest.raises(ValueError, match="must not be empty"):
        states(steps=())
    for gradient in ("shine", "unroll", "reversible", "newton", partial(phantom, steps=0)):
        with pytest.raises(ValueError, match=r"gradient must be one of|at least 1; got 0"):
            states(steps=(2,), gradient=gradient)
    with pytest.raises(ValueError, match=r"up to max_steps=30; got \(2, 31\)"):
        states(steps=(2, 31))
    with pytest.raises(ValueError, match=r"ascending .*got \(3, 2\)"):
        states(steps=(3, 2))
    with pytest.raises(ValueError, match="kind must be one of"):
        correction_weights("cosine", 3)
    with pytest.raises(ValueError, match="n, the number of states, must be at least 1; got 0"):
        correction_weights("linear", 0)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]; got 2"):
        correction_weights("linear", 3, 2)
    with pytest.raises(ValueError, match="has no effect on constant weights"):
        correction_weights("constant", 3, 0.5)
    with pytest.raises(ValueError, match="Each loss needs one weight"):
        fixed_point_correction(jnp.ones(3), np.ones(2))
