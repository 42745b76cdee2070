"""Cells that change their state, close over what is differentiated, or return more than a state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdeq_jax.implicit import GRADIENTS, equilibrium, reversible, supervised_states, unroll
from mdeq_jax.solvers import broyden
from tests.helpers.cells import SOLVE, assert_trees_close, problem, start, tanh_cell, value

every_gradient = pytest.mark.parametrize("gradient", GRADIENTS)
TWO = (jnp.zeros((2, 4, 4, 2)), jnp.zeros((2, 2, 2, 8)))


@every_gradient
def test_branches_in_another_order_are_refused(gradient):
    with pytest.raises(ValueError, match=r"leaf \[0\].*\(2, 4, 4, 2\).*\(2, 2, 2, 8\)"):
        equilibrium(lambda p, z, x: z[::-1], (), (), TWO, gradient=gradient)


@every_gradient
def test_another_structure_is_refused(gradient):
    with pytest.raises(ValueError, match="structure of z0"):
        equilibrium(lambda p, z, x: list(z), (), (), TWO, gradient=gradient)


@every_gradient
def test_a_leaf_that_comes_back_narrower_is_refused(gradient):
    z0 = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3), jnp.bfloat16)}

    def narrower(params, z, x):
        return {"a": z["a"], "b": z["b"].astype(jnp.bfloat16)}

    with pytest.raises(TypeError, match=r"leaf \['b'\].*float32.*bfloat16"):
        equilibrium(narrower, (), (), z0, gradient=gradient)


def test_deep_supervision_checks_too():
    with pytest.raises(ValueError, match=r"leaf \[0\]"):
        supervised_states(lambda p, z, x: z[::-1], (), (), TWO, steps=(1,))


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(lambda s: (2, *s))
trees = st.recursive(
    st.builds(jnp.zeros, shapes, st.sampled_from(["float32", "bfloat16"])),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(z0=trees, other=trees)
def test_another_tree_is_refused_before_any_solve(z0, other):
    def solver(*_, **__):
        raise AssertionError("solved")

    common = jnp.result_type(*jax.tree.leaves(z0))
    wanted = jax.tree.map(lambda leaf: (leaf.shape, common), z0)
    got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), other)
    error = AssertionError if wanted == got else (ValueError, TypeError)
    with pytest.raises(error):
        equilibrium(lambda p, z, x: other, (), (), z0, f_solver=solver)


@pytest.mark.parametrize(
    ("z0", "error", "message"),
    [
        ([0.0, 0.0], TypeError, r"z0\[0\] is the number 0.0.*jnp.asarray"),
        ([[0.0, 0.0]], TypeError, r"z0\[0\]\[0\] is the number 0.0.*jnp.asarray"),
        (np.zeros((2, 3)), TypeError, r"z0 is a NumPy array of float64.*jnp.asarray"),
        (jnp.zeros((2, 3), int), TypeError, "z0 must be a floating-point array; got int32"),
        (jnp.zeros(3), ValueError, r"\(3,\).*z0\[None\] for one sample"),
    ],
)
@every_gradient
def test_starts_that_are_no_state(gradient, z0, error, message):
    with pytest.raises(error, match=message):
        equilibrium(lambda p, z, x: z, (), (), z0, gradient=gradient)


@every_gradient
@pytest.mark.parametrize("where", ["outside jit", "around jit"])
def test_what_f_closes_over_is_differentiated(gradient, where, x64):
    params, x = problem()
    kept = jnp.arange(x.size).reshape(x.shape) % 5 > 0
    solvers = {"f_solver": SOLVE, "b_solver": SOLVE, "gradient": gradient}

    def closing(params, kept):
        def f(_, z, __):
            return jnp.where(kept, tanh_cell(params, z, x), 0.1)

        return value(equilibrium(f, (), (), start(tanh_cell), **solvers)[0])

    def passing(params, kept):
        def f(params, z, kept):
            return jnp.where(kept, tanh_cell(params, z, x), 0.1)

        return value(equilibrium(f, params, kept, start(tanh_cell), **solvers)[0])

    if where == "around jit":
        ours = jax.grad(jax.jit(closing))(params, kept)
    else:
        ours = jax.grad(closing)(params, kept)
    # The inverse estimate of "shine" depends on the rounding of the forward solve.
    rtol = 1e-4 if gradient == "shine" else 1e-9
    assert_trees_close(ours, jax.jit(jax.grad(passing))(params, kept), rtol)


@every_gradient
def test_aux_is_that_of_the_state_reported(gradient):
    def f(params, z, x):
        return jnp.tanh(z * params + x), {"sum": jnp.sum(z, axis=1)}

    params, x, z0 = jnp.float32(0.5), jnp.ones((2, 3)), jnp.zeros((2, 3))
    z, solution, aux = equilibrium(f, params, x, z0, gradient=gradient, has_aux=True)
    np.testing.assert_allclose(aux["sum"], jnp.sum(solution.z, axis=1), rtol=1e-6)
    alone, _ = equilibrium(lambda *args: f(*args)[0], params, x, z0, gradient=gradient)
    np.testing.assert_allclose(z, alone, rtol=1e-6)
    solve = partial(equilibrium, f, gradient=gradient, has_aux=True)
    assert jax.grad(lambda p: jnp.sum(solve(p, x, z0)[0]))(params) > 0
    with pytest.raises(TypeError, match="must return a pair"):
        equilibrium(lambda p, z, x: z, params, x, z0, has_aux=True)


def test_trace_gets_states_like_the_start():
    calls = []
    z0 = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 2, 2))}

    def f(params, z, x):
        return jax.tree.map(jnp.cos, z)

    solver = partial(broyden, max_steps=3, tol=0)
    solve = jax.jit(
        lambda z0: equilibrium(
            f, (), (), z0, f_solver=solver, trace=lambda *args: calls.append(args)
        )
    )
    jax.block_until_ready(solve(z0))
    jax.effects_barrier()
    assert sorted(int(step) for step, _, _ in calls) == [0, 1, 2, 3]
    for _, z, residual in calls:
        assert jax.tree.map(np.shape, z) == jax.tree.map(jnp.shape, z0)
        assert residual.shape == (2,)


@pytest.mark.parametrize("remat", [None, False, True])  # None: the reversible gradient
def test_iterations_without_a_solver_call_trace_once_a_step(remat):
    """Under differentiation too, with the states and residuals of the report."""
    calls = {}
    gradient = partial(unroll, remat=remat) if remat is not None else partial(reversible, beta=0.8)
    z0 = {"a": jnp.full((2, 3), 0.5)}

    def keep(step, z, residual):
        assert int(step) not in calls
        calls[int(step)] = (z, residual)

    def loss(params):
        z, report = equilibrium(
            lambda params, z, x: jax.tree.map(lambda z: jnp.cos(params * z), z),
            params, (), z0, gradient=partial(gradient, steps=4, tol=0), step_budget=3, trace=keep,
        )  # fmt: skip
        return jnp.sum(z["a"]), report

    _, report = jax.block_until_ready(jax.jit(jax.grad(loss, has_aux=True))(0.5))
    jax.effects_barrier()
    first = 0 if remat is not None else 1
    assert sorted(calls) == [first, first + 1, first + 2]
    residuals = np.stack([calls[step][1] for step in sorted(calls)])
    np.testing.assert_allclose(residuals, report.rel_trace[:3], rtol=1e-6)
    np.testing.assert_allclose(calls[max(calls)][0]["a"].reshape(2, 3), report.z, rtol=1e-6)
