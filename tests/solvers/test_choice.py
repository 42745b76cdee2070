"""The forward and the backward solver are chosen apart, each with its own settings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.implicit import BackwardStats, equilibrium
from mdeq_jax.solvers import (
    SOLVERS,
    Status,
    anderson,
    broyden,
    build_solver,
    fixed_point_iteration,
)

BATCH, SIZE = 3, 5
MIXES = [
    (anderson, broyden),
    (broyden, fixed_point_iteration),
    (fixed_point_iteration, anderson),
]


def affine_cell(params, z, x):
    return z @ params + x


@pytest.mark.parametrize(("forward", "backward"), MIXES)
def test_every_mix_of_solvers_gives_the_closed_form(forward, backward, x64):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(SIZE, SIZE))
    w *= 0.6 / abs(np.linalg.eigvals(w)).max()
    x, weights = rng.normal(size=(2, BATCH, SIZE))
    used = []

    def noted(name, solver, *args, **kwargs):
        used.append(name)
        return solver(*args, **kwargs)

    f_solver = partial(noted, "forward", forward, max_steps=100, tol=1e-12)
    b_solver = partial(noted, "backward", backward, max_steps=90, tol=1e-9, stop_mode="abs")

    @jax.jit
    def run(x, stats):
        def loss(x, stats):
            z, solution = equilibrium(
                affine_cell,
                jnp.asarray(w),
                x,
                jnp.zeros((BATCH, SIZE)),
                f_solver=f_solver,
                b_solver=b_solver,
                backward_stats=stats,
            )
            return jnp.sum(z * weights), (z, solution)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, stats)

    (_, (z, solution)), (gradient, stats) = run(x, BackwardStats.zeros(BATCH))
    inverse = np.linalg.inv(np.eye(SIZE) - w)
    np.testing.assert_allclose(z, x @ inverse, rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient, weights @ inverse.T, rtol=0, atol=1e-7)
    # Each kept to its own settings, and reports for itself.
    assert used == ["forward", "backward"]
    assert solution.rel_trace.shape == (100, BATCH)
    assert (solution.status == Status.CONVERGED).all() and (solution.rel_residual < 1e-12).all()
    assert (stats.status == Status.CONVERGED).all() and stats.nfe != solution.nfe


def test_the_config_has_every_setting_of_every_solver():
    settings = {
        "broyden": {"history_dtype": "bfloat16"},
        "anderson": {"m": 4, "lam": 1e-5, "beta": 0.9},
        "fixed_point_iteration": {"tau": 0.5},
    }
    assert settings.keys() == SOLVERS.keys()
    for name, options in settings.items():
        config = default.get_config().solver.forward
        config.update(name=name, **options)
        solver = build_solver(config, "solver.forward")
        assert solver.func is SOLVERS[name]
        assert options.items() <= solver.keywords.items()


def test_a_setting_of_another_solver_is_refused():
    config = default.get_config().solver.backward
    config.m = 5
    with pytest.raises(ValueError, match=r"solver.backward.m=5 has no effect on 'bro"):
        build_solver(config, "solver.backward")
    config.update(name="anderson", m=0)
    with pytest.raises(ValueError, match=r"solver.backward: m, .* must be at least 1; got 0"):
        build_solver(config, "solver.backward")
