"""What one sample of a batch does is no business of its neighbours."""

import jax
import numpy as np
import pytest

from mdeq_jax.solvers import Status, anderson, broyden, fixed_point_iteration
from tests.helpers.sample_maps import compiled, mixed_batch, stack

STEPS = 60
SETTINGS = dict(max_steps=STEPS, tol=1e-10)
VARIANTS = {
    "broyden": (broyden, {}),
    "anderson": (anderson, {}),
    "fixed_point_iteration": (fixed_point_iteration, {}),
}


def assert_same(together, i, alone, name):
    """Every field of sample `i` but `nfe`, which belongs to the batch, to rounding."""
    assert together.status[i] == alone.status[0], name
    assert together.steps[i] == alone.steps[0], name
    ours = together.z[i], together.residual[i], together.rel_residual[i]
    theirs = alone.z[0], alone.residual[0], alone.rel_residual[0]
    ours += together.abs_trace[:, i], together.rel_trace[:, i]  # NaN must meet NaN, too
    theirs += alone.abs_trace[:, 0], alone.rel_trace[:, 0]
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13, err_msg=name)


@pytest.fixture
def batch(x64):
    samples, starts = mixed_batch()
    return list(samples), stack(samples.values()), starts


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_in_a_mixed_batch_does_what_it_does_alone(variant, batch):
    solver, options = VARIANTS[variant]
    solve = compiled(solver, **SETTINGS, **options)
    names, maps, starts = batch
    together = solve(maps, starts, STEPS)

    # The batch is what it claims to be: some finish at once, some never do, some blow up.
    status = dict(zip(names, np.asarray(together.status)))
    steps = dict(zip(names, np.asarray(together.steps)))
    assert status["starts solved"] == Status.CONVERGED and steps["starts solved"] == 0
    assert status["one step"] == Status.CONVERGED and steps["one step"] == 1
    for name in ("contraction", "cosine"):
        assert status[name] == Status.CONVERGED and steps[name] > 4
    for name in ("no fixed point", "blows up", "turns NaN", "overflows"):
        assert status[name] != Status.CONVERGED
    for name in ("turns NaN", "overflows"):
        assert status[name] == Status.DIVERGED
    solved = names.index("starts at zero, solved")
    assert status[names[solved]] == Status.CONVERGED and steps[names[solved]] == 0
    np.testing.assert_array_equal(together.z[solved], 0)
    assert np.isfinite(together.z).all()

    nfes = []
    for i, name in enumerate(names):
        alone = solve(maps.only(i), starts[i : i + 1], STEPS)
        assert_same(together, i, alone, name)
        nfes.append(int(alone.nfe))
    assert together.nfe == max(nfes)


@pytest.mark.parametrize("variant", ["broyden", "anderson"])
def test_vmap_is_a_loop(variant, batch):
    """Elements of `jax.vmap` leave the loop at different steps; what runs on is thrown away."""
    solver, options = VARIANTS[variant]
    solve = compiled(solver, **SETTINGS, **options)
    names, maps, starts = batch
    budgets = np.full(len(names), STEPS)
    budgets[[names.index("tanh"), names.index("contraction")]] = 0, 5
    one_each = jax.tree.map(lambda leaf: leaf[:, None], (maps, starts))
    mapped = jax.jit(jax.vmap(solve))(*one_each, budgets)
    for i, name in enumerate(names):
        alone = solve(maps.only(i), starts[i : i + 1], budgets[i])
        element = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
        if variant == "broyden" and name in ("slow", "blows up"):
            # Mapped inner products may be summed in another order, and over the many steps of these
            # two the method amplifies the rounding: how they end is compared, and the answer.
            assert element.status[0] == alone.status[0]
            if element.status[0] == Status.CONVERGED:
                np.testing.assert_allclose(element.z[0], alone.z[0], rtol=1e-6)
            continue
        assert_same(element, 0, alone, name)
        assert element.nfe == alone.nfe  # what it needed itself, not what the slowest needed
