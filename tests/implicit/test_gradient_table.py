"""The table of gradients agrees with their signatures, and every `b_solver` is used or refused."""

from functools import partial

import jax
import numpy as np
import pytest

from mdeq_jax.implicit import GRADIENTS, GradientInfo, equilibrium, gradient_info, ift, shine
from mdeq_jax.implicit.binding import keywords_of, settings_of
from mdeq_jax.solvers import broyden, fixed_point_iteration
from tests.helpers.cells import SOLVE, affine_cell, loss, problem, start, tanh_cell


@pytest.mark.parametrize("name", GRADIENTS)
def test_rows_agree_with_the_signatures(name):
    info = GRADIENTS[name]
    keywords = keywords_of(info.function)
    assert info.solves_backward == ("b_solver" in keywords)
    assert info.needs_inverse == ("inverse" in keywords)
    assert info.own_iteration == ({"tol", "stop_mode", "step_budget"} <= keywords.keys())
    assert info.solves_only_with is None or info.solves_only_with in info.options
    assert set(info.options) <= keywords.keys()


def test_settings_that_decide_whether_it_solves():
    info = GRADIENTS["shine"]
    for steps, solves in ((None, False), (0, False), (3, True)):
        settings = {"refine_steps": steps}
        assert info.solves_with(settings) == info.can_fail_with(settings) == solves
    assert GRADIENTS["ift"].solves_with({}) and not GRADIENTS["phantom"].solves_with({})


def test_the_row_of_a_function():
    assert gradient_info(partial(partial(ift, unconverged="cap"))) is GRADIENTS["ift"]
    assert gradient_info(len) == GradientInfo(len)


def test_settings_of_nested_partials():
    nested = partial(partial(ift, unconverged="cap", linearize_at="z_star"), unconverged="keep")
    expected = {"b_solver": broyden, "linearize_at": "z_star", "unconverged": "keep"}
    assert settings_of(nested) == expected


def counting(calls):
    """A solver that notes each trace of it."""

    def solver(*args, **kwargs):
        calls.append(kwargs)
        return fixed_point_iteration(*args, max_steps=40, tol=1e-6, **kwargs)

    return solver


@pytest.mark.parametrize(
    "gradient",
    [
        "ift",
        ift,
        partial(ift, linearize_at="f_z_star"),
        partial(shine, refine_steps=2),
        lambda f, params, x, z, stats, *, b_solver: ift(f, params, x, z, stats, b_solver=b_solver),
        lambda *args, **settings: ift(*args, **settings),
    ],
    ids=["name", "function", "partial", "shine", "custom", "custom with any keyword"],
)
def test_b_solver_is_used(gradient):
    params, x = problem()
    calls = []
    if isinstance(gradient, partial) and gradient.func is shine:
        solver = lambda *args, max_steps: counting(calls)(*args)  # noqa: E731
    else:
        solver = counting(calls)
    of = partial(loss, tanh_cell, gradient=gradient, b_solver=solver)
    jax.eval_shape(jax.grad(of), params, x)
    assert len(calls) == 1


def test_b_solver_of_a_function_is_used_for_its_value(x64):
    """A backward solver that returns its start, zero, gives a gradient of zero."""
    params, x = problem()
    nothing = partial(fixed_point_iteration, max_steps=1, tol=1e9)
    of = partial(loss, affine_cell, f_solver=SOLVE, b_solver=nothing)
    found = jax.jit(jax.grad(partial(of, gradient=partial(ift, unconverged="keep"))))(params, x)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("gradient", ["phantom", "one_step", "unroll"])
def test_gradients_of_the_table_that_solve_nothing_ignore_b_solver(gradient):
    params, x = problem()
    for given in (gradient, GRADIENTS[gradient].function):
        calls = []
        of = partial(loss, tanh_cell, gradient=given, b_solver=counting(calls))
        jax.eval_shape(jax.grad(of), params, x)
        assert not calls


def test_two_b_solvers_are_refused():
    params, x = problem()
    for gradient in (partial(ift, b_solver=SOLVE), partial(partial(ift, b_solver=SOLVE))):
        with pytest.raises(ValueError, match=r"b_solver is given twice: bound to the gradient 'if"):
            equilibrium(tanh_cell, params, x, start(tanh_cell), gradient=gradient, b_solver=broyden)


def test_a_function_without_b_solver_refuses_one():
    def mine(f, params, x, z, stats):
        return f(params, z, x)

    params, x = problem()
    of = partial(equilibrium, tanh_cell, params, x, start(tanh_cell), gradient=mine)
    with pytest.raises(ValueError, match="no effect on the gradient 'mine', which has no such"):
        of(b_solver=broyden)
    assert jax.eval_shape(of)[0].shape == x.shape


def test_a_gradient_from_outside(monkeypatch):
    def mine(f, params, x, z, stats, *, factor=1.0):
        return jax.tree.map(lambda a: factor * a, f(params, z, x))

    monkeypatch.setitem(GRADIENTS, "mine", GradientInfo(mine))
    assert GRADIENTS["mine"].options == ("factor",)
    params, x = problem()
    of = partial(equilibrium, tanh_cell, params, x, start(tanh_cell), gradient="mine")
    assert jax.eval_shape(of)[0].shape == x.shape
