"""What takes the place of adjoint solutions that were not found: which samples, what, at what cost.

The cell is affine and scaled a sample at a time, so that the second sample's iterates run away and
the others' converge; df/dx is one, so that the gradient of x is u itself.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import BackwardStats, ift, shine
from mdeq_jax.implicit.fallback import CAP, DAMPED, UNCONVERGED
from mdeq_jax.solvers import Status, broyden, fixed_point_iteration
from tests.helpers.cells import BATCH, SIZE, loss, problem, tanh_cell

SCALES = np.array([0.5, 1.05, 0.6])
HARD = 1
ITERATE = partial(fixed_point_iteration, max_steps=25, tol=1e-3)


def g():
    return np.cos(np.arange(SIZE))


def symmetric():
    """Most of g lies along the eigenvector of the eigenvalue 1."""
    columns = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    columns[:, 0] = 3 * g() + columns[:, 0]
    basis = np.linalg.qr(columns)[0]
    return jnp.asarray(basis @ np.diag([1.0, 0.5, 0.3, -0.4, 0.2, -0.1]) @ basis.T)


def scaled_cell(params, z, x):
    return (z @ params["w"]) * params["scale"][:, None] + x


def gradients(unconverged, scales=SCALES, b_solver=ITERATE, of=scaled_cell):
    """(df/dparams, u) and the statistics of the backward pass."""
    gradient = partial(ift, unconverged=unconverged)
    run_loss = partial(loss, of, gradient=gradient, f_solver=ITERATE, b_solver=b_solver)

    def run(params, x, stats):
        return run_loss(params, x, backward_stats=stats)

    params = {"w": symmetric(), "scale": jnp.asarray(scales)}
    x = jnp.ones((BATCH, SIZE))
    *found, stats = jax.grad(run, argnums=(0, 1, 2))(params, x, BackwardStats.zeros(BATCH))
    return found, stats


@pytest.fixture(scope="module")
def found():
    jax.config.update("jax_enable_x64", True)
    yield {rule: gradients(rule) for rule in UNCONVERGED}
    jax.config.update("jax_enable_x64", False)


def test_damped_is_the_sum_of_its_definition(found, x64):
    tau = DAMPED["tau"]
    step = (1 - tau) * np.eye(SIZE) + tau * SCALES[HARD] * np.asarray(symmetric()).T
    terms = [np.linalg.matrix_power(step, i) @ g() for i in range(DAMPED["steps"])]
    np.testing.assert_allclose(found["damped"][0][1][HARD], tau * sum(terms), rtol=1e-10)


def test_cap_keeps_the_direction(found, x64):
    kept, capped = (found[rule][0][1][HARD] for rule in ("keep", "cap"))
    expected = kept * min(1, CAP * np.linalg.norm(g()) / np.linalg.norm(kept))
    np.testing.assert_allclose(capped, expected, rtol=1e-12)


@pytest.mark.parametrize("rule", UNCONVERGED)
def test_other_samples_and_the_report_are_untouched(rule, found):
    (_, u), stats = found[rule]
    (_, kept), expected = found["keep"]
    others = np.arange(BATCH) != HARD
    np.testing.assert_array_equal(u[others], kept[others])
    chex.assert_trees_all_equal(stats, expected)
    assert list(stats.status != Status.CONVERGED) == list(~others)


@pytest.mark.parametrize("rule", ["damped", "cap"])
def test_costs_no_product_where_all_converged(rule, x64):
    """The cell's backward pass counts how often it runs."""
    runs = []

    @jax.custom_vjp
    def counted(z):
        return z

    def count(_, cotangent):
        jax.debug.callback(lambda: runs.append(1))
        return (cotangent,)

    counted.defvjp(lambda z: (z, None), count)

    def cell(params, z, x):
        return scaled_cell(params, counted(z), x)

    products = {}
    for scales in ((0.5, 0.4, 0.6), SCALES):
        for unconverged in ("keep", rule):
            runs.clear()
            jax.block_until_ready(gradients(unconverged, np.array(scales), of=cell))
            jax.effects_barrier()
            products[scales is SCALES, unconverged] = len(runs)
    assert products[False, rule] == products[False, "keep"] > 5
    extra = DAMPED["steps"] - 1 if rule == "damped" else 0
    assert products[True, rule] == products[True, "keep"] + extra


def second(rule, params, x):
    gradient = partial(ift, unconverged=rule)

    def squares(params, x):
        of = partial(loss, scaled_cell, gradient=gradient, f_solver=ITERATE, b_solver=ITERATE)
        return jnp.sum(jnp.sin(jax.grad(of, argnums=1)(params, x)))

    return jax.grad(squares)(params, x)["scale"]


def test_derivatives_of_the_gradient_follow_the_same_rule(x64):
    """Of samples that converged they are those of "keep"; of the others they are bounded too."""
    params = {"w": symmetric(), "scale": jnp.asarray(SCALES)}
    x = jnp.ones((BATCH, SIZE))
    kept, damped = jax.jit(lambda p, x: [second(rule, p, x) for rule in ("keep", "damped")])(
        params, x
    )
    others = np.arange(BATCH) != HARD
    np.testing.assert_allclose(damped[others], kept[others], rtol=1e-12)
    assert np.isfinite(damped).all() and abs(damped[HARD]) < 0.1 * abs(kept[HARD])


def test_a_solution_that_is_nearly_there_is_kept(x64):
    """The solve of the hard sample ends unconverged, at a residual under `FAILED` |g|."""
    scales = np.array([0.5, 0.95, 0.6])
    (_, kept), stats = gradients("keep", scales)
    assert stats.status[HARD] == Status.MAX_STEPS
    for rule in ("damped", "cap"):
        np.testing.assert_array_equal(gradients(rule, scales)[0][1], kept)


def test_of_refined_shine(x64):
    """Two steps from Broyden's estimate: what is left of the hard sample's residual is too much."""
    params = {"w": symmetric(), "scale": jnp.asarray(SCALES)}
    x = jnp.ones((BATCH, SIZE))
    forward = partial(broyden, max_steps=2, tol=1e-3)

    def u(rule):
        settings = {"refine_steps": 2, "unconverged": rule}
        run = partial(loss, gradient=partial(shine, **settings), f_solver=forward)
        of = partial(run, scaled_cell, b_solver=ITERATE)
        return jax.grad(of, argnums=1)(params, x)

    kept, damped = u("keep"), u("damped")
    changed = (kept != damped).any(axis=1)
    assert changed[HARD] and not changed[np.arange(BATCH) != HARD].any()


@pytest.mark.slow
def test_under_vmap(found, x64):
    (_, u), _ = found["damped"]
    scales = jnp.asarray([SCALES, SCALES[::-1]])
    together = jax.vmap(lambda scales: gradients("damped", scales)[0][1])(scales)
    np.testing.assert_allclose(together, jnp.stack([u, u[::-1]]), rtol=1e-10)


def test_refused():
    params, x = problem()
    with pytest.raises(ValueError, match=r"unconverged must be one of \('keep'.*; got 'drop'"):
        loss(tanh_cell, params, x, gradient=partial(ift, unconverged="drop"))
    with pytest.raises(ValueError, match="unconverged='damped' has no effect on an estimate"):
        loss(tanh_cell, params, x, gradient=partial(shine, unconverged="damped"))
