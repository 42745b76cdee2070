import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import jacobian_loss, spectral_radius

BATCH, SIZE = 4, 5


def cell(w, z, x):
    return z @ w + x


def matrix(eigenvalues):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
    return jnp.asarray(basis @ np.diag(eigenvalues) @ basis.T)


def test_jacobian_loss_of_a_probe(x64):
    w, z = matrix([0.9, 0.5, 0.1, -0.3, -0.7]), jnp.zeros((BATCH, SIZE))
    probe = jax.random.normal(jax.random.key(0), (BATCH, SIZE))
    expected = np.sum((probe @ w.T) ** 2) / (BATCH * SIZE)
    np.testing.assert_allclose(jacobian_loss(cell, w, z, z, probe=probe), expected)


def test_jacobian_loss_estimates_the_frobenius_norm(x64):
    w, z = matrix([0.9, 0.5, 0.1, -0.3, -0.7]), jnp.zeros((BATCH, SIZE))
    estimate = jacobian_loss(cell, w, z, z, key=jax.random.key(0), num_probes=3000)
    np.testing.assert_allclose(estimate, np.sum(w**2) / SIZE, rtol=0.03)
    gradient = jax.grad(lambda w: jacobian_loss(cell, w, z, z, probe=jnp.ones_like(z)))(w)
    np.testing.assert_allclose(gradient, 2 * w @ np.ones((SIZE, SIZE)) / SIZE, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_states_are_added_up_in_float32(dtype):
    def scaled(w, z, x):
        return z * jnp.asarray(1.5, dtype)

    key, z = jax.random.key(0), jnp.zeros((8, 20000), dtype)
    for num_probes in (1, 20):
        loss = jacobian_loss(scaled, (), (), z, key=key, num_probes=num_probes)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, 2.25, rtol=0.02)
    result = spectral_radius(scaled, (), (), z, key=key, num_steps=10)
    np.testing.assert_allclose(result.radius, 1.5, rtol=0.02)


def test_raw_keys_mean_the_same(x64):
    w, z = matrix([0.9, 0.5, 0.1, -0.3, -0.7]), jnp.zeros((BATCH, SIZE))
    new, raw = jax.random.key(3), jax.random.PRNGKey(3)
    for n, split in ((1, False), (2, False), (2, True)):
        keys = [jax.random.split(key, BATCH) if split else key for key in (new, raw)]
        expected, same = (jacobian_loss(cell, w, z, z, key=key, num_probes=n) for key in keys)
        assert expected == same
    expected, same = (spectral_radius(cell, w, z, z, key=key).radius for key in (new, raw))
    np.testing.assert_array_equal(expected, same)


def test_spectral_radius_of_a_real_eigenvalue(x64):
    w, z = matrix([-0.9, 0.5, 0.1, 0.3, 0.7]), jnp.zeros((BATCH, SIZE))
    result = spectral_radius(cell, w, z, z, key=jax.random.key(0), num_steps=200)
    np.testing.assert_allclose(result.radius, 0.9, rtol=1e-6)
    np.testing.assert_allclose(result.growth, 0.9, rtol=1e-6)
    assert (result.residual < 1e-6).all()


def test_spectral_radius_of_a_complex_pair_says_that_it_did_not_converge(x64):
    angle = 0.8 * jnp.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
    z = jnp.zeros((BATCH, 2))
    result = spectral_radius(cell, angle, z, z, key=jax.random.key(0))
    np.testing.assert_allclose(result.growth, 0.8, rtol=1e-6)
    assert (result.residual > 0.5).all()


def test_bad_arguments():
    z = jnp.zeros((BATCH, SIZE))
    with pytest.raises(ValueError, match="got neither"):
        jacobian_loss(cell, jnp.eye(SIZE), z, z)
    with pytest.raises(ValueError, match="num_probes must be at least 1; got 0"):
        jacobian_loss(cell, jnp.eye(SIZE), z, z, key=jax.random.key(0), num_probes=0)
    with pytest.raises(ValueError, match="num_steps must be at least 2; got 1"):
        spectral_radius(cell, jnp.eye(SIZE), z, z, key=jax.random.key(0), num_steps=1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_many_probes_are_averaged_in_the_memory_of_one(per_sample, x64):
    key, z = jax.random.key(0), jnp.ones((BATCH, SIZE))
    keys = jax.random.split(key, BATCH) if per_sample else key

    def tanh_cell(w, z, x):
        return jnp.tanh(cell(w, z, x))

    def of(w, n):
        return jacobian_loss(tanh_cell, w, z, z, key=keys, num_probes=n)

    w = matrix([0.9, 0.5, 0.1, -0.3, -0.7])
    slope = np.asarray(1 - tanh_cell(w, z, z) ** 2)  # dz' = slope * (dz w)
    expected = np.mean([np.sum((np.asarray(w) * s) ** 2) for s in slope]) / SIZE
    np.testing.assert_allclose(of(w, 3000), expected, rtol=0.05)
    few, many = (
        jax.jit(jax.grad(of), static_argnums=1).lower(w, n).compile().memory_analysis()
        for n in (10, 1000)
    )
    growth = (many.temp_size_in_bytes - few.temp_size_in_bytes) / 990
    assert growth < z.nbytes / 4  # no probe is kept: what grows is a counter
