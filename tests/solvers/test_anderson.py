"""Anderson acceleration compared with its definition, and on singular Gram matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.solvers import Status, anderson
from tests.helpers.sample_maps import compiled, mixed_batch, stack

STEPS = 16


def textbook_anderson(f, z, steps, *, m=6, lam=1e-4, beta=1.0):
    """Relative residuals of one sample, from lists and a dense solve in float64."""
    zs, fs, residuals = [], [], []
    for _ in range(steps + 1):
        fz = f(z)
        residuals.append(np.linalg.norm(fz - z) / np.linalg.norm(fz))
        zs, fs = [*zs, z][-m:], [*fs, fz][-m:]
        g = np.stack(fs) - np.stack(zs)
        gram = g @ g.T
        scale = np.trace(gram) / len(gram)
        ridge = max(lam * min(1, scale), 10 * np.finfo(float).eps * scale)
        alpha = np.linalg.solve(gram + ridge * np.eye(len(gram)), np.ones(len(gram)))
        alpha /= alpha.sum()
        z = alpha @ (beta * np.stack(fs) + (1 - beta) * np.stack(zs))
    return residuals[1:]


OPTIONS = {
    "plain": {},
    "mixing": {"m": 3, "beta": 0.6},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_anderson_is_anderson(options, x64):
    samples, starts = mixed_batch()
    maps = stack(samples.values())
    sol = compiled(anderson, max_steps=60, tol=1e-10, **options)(maps, starts, 60)
    for name in ("contraction", "steep tanh", "rotation", "slow"):
        i = list(samples).index(name)
        trace = np.asarray(sol.rel_trace[:, i])[:STEPS]
        trace = trace[np.isfinite(trace)]
        assert len(trace) >= 10
        one = maps.only(i)
        expected = textbook_anderson(
            lambda z, one=one: np.asarray(one(jnp.asarray(z[None])))[0],
            starts[i],
            len(trace),
            **options,
        )
        np.testing.assert_allclose(trace, expected, rtol=1e-5, atol=1e-14)


def singular_batch():
    """Float32 maps of 4 dimensions whose Gram matrices are singular: `{name: (A, b, start)}`."""
    eye, ones, none = np.eye(4), np.ones(4), np.zeros(4)
    half = 0.5 * eye
    first = np.diag([0.9, 0, 0, 0])
    return {
        "every residual the same": (eye, ones, none),
        "residuals of opposite sign": (-eye, ones, none),
        "zero residual after a step": (0 * eye, ones, none),
        "one dimension": (first, ones * [1, 0, 0, 0], none),
        "two dimensions": (np.diag([0.9, -0.7, 0, 0]), ones * [1, 1, 0, 0], none),
        "zero residual at the start": (half, ones, 2 * ones),
        "equal iterates": (half, ones, 2 * ones * (1 + 1e-7)),
        "large": (half, 1e8 * ones, none),
        "squares overflow": (half, 1e25 * ones, none),
        "squares vanish": (half, 1e-25 * ones, none),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"m": 12}, {"lam": 0.0, "scale_lam": False}],
    ids=["default", "wide", "no regularisation"],
)
def test_singular_gram_matrices_in_float32(options):
    batch = singular_batch()
    maps = stack((sample[:2] for sample in batch.values()), np.float32)
    start = np.stack([sample[2] for sample in batch.values()]).astype(np.float32)
    solve = compiled(anderson, max_steps=100, tol=1e-5, **options)
    sol, first = solve(maps, start, 100), solve(maps, start, 0)
    assert sol.z.dtype == np.float32
    assert np.isfinite(sol.z).all()
    assert (sol.rel_residual <= first.rel_residual).all()
    for name, status, z in zip(batch, np.asarray(sol.status), np.asarray(sol.z)):
        if name == "every residual the same":  # no fixed point
            assert status == Status.MAX_STEPS, name
            continue
        assert status == Status.CONVERGED, name
        matrix, shift, _ = batch[name]
        expected = np.linalg.solve(np.eye(4) - matrix, shift)
        if name != "squares vanish":  # converged at once: 1e-25 is nothing beside 1e-9
            np.testing.assert_allclose(z, expected, rtol=2e-4, err_msg=name)
        if name == "zero residual after a step":
            np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"m": 0}, ValueError, "m, the number of iterates combined, must be at least 1; got 0"),
        ({"m": 2.5}, TypeError, "must be an integer of at least 1; got 2.5"),
        ({"lam": -1.0}, ValueError, "lam must not be negative; got -1"),
        ({"lam": float("nan")}, ValueError, "lam must not be negative; got nan"),
        ({"beta": 0}, ValueError, r"beta must be in \(0, 1\]; got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        anderson(jnp.cos, jnp.zeros((1, 3)), **options)
