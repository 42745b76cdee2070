"""A fixed-point problem stands for its parts wherever they are taken."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import FixedPointProblem, equilibrium, jacobian_loss, spectral_radius
from tests.helpers.cells import BATCH, SIZE, problem, start, tanh_cell, tree_cell


@pytest.fixture
def tree_problem():
    params, x = problem()
    return FixedPointProblem(tree_cell, params, x, start(tree_cell))


def test_solved_by_unpacking(tree_problem):
    z, solution = equilibrium(*tree_problem)
    best = tree_problem.unravel(solution.z)
    assert jax.tree.structure(best) == jax.tree.structure(z) == jax.tree.structure(tree_problem.z0)
    chex.assert_trees_all_equal(tree_problem.evaluate(best), z)


def test_jacobian_loss_and_spectral_radius(tree_problem):
    f, params, x, z0 = tree_problem
    z = jax.tree.map(lambda a: a + 0.3, z0)
    key = jax.random.key(0)
    expected = jacobian_loss(f, params, x, z, key=key)
    for value in (
        jacobian_loss(tree_problem, z=z, key=key),
        jacobian_loss(tree_problem._replace(z0=z), key=key),
    ):
        np.testing.assert_array_equal(value, expected)
    radius = spectral_radius(tree_problem, z=z, key=key, num_steps=3)
    jax.tree.map(
        np.testing.assert_array_equal,
        radius,
        spectral_radius(f, params, x, z, key=key, num_steps=3),
    )


def test_parts_and_problem_together_are_refused(tree_problem):
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"brings its own params and x.* z=\.\.\."):
        jacobian_loss(tree_problem, tree_problem.z0, key=key)
    with pytest.raises(TypeError, match="or a FixedPointProblem"):
        spectral_radius(tanh_cell, *problem(), key=key)


def test_parameters_may_be_an_empty_tree():
    z = jnp.ones((BATCH, SIZE))
    assert jacobian_loss(lambda params, z, x: z, None, None, z, probe=z) == 1
