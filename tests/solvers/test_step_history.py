import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.solvers import broyden, history_products, inverse_product, step_history


def solve(**options):
    """Of 21 steps on an affine map."""
    a, b = jax.random.split(jax.random.key(0))
    a = jax.random.uniform(a, (3, 500), minval=-0.9, maxval=0.9)
    b = jax.random.normal(b, (3, 500))
    z0 = jnp.zeros_like(b)
    return jax.jit(lambda: broyden(lambda z: a * z + b, z0, max_steps=21, tol=0.0, **options))()


@pytest.mark.parametrize("rows", [*range(1, 35), 59, 64, 65, 200])
def test_sizes_fill_the_rows(rows):
    sizes = step_history.FILLED.sizes(rows)
    assert sum(sizes) == rows
    assert len(sizes) <= history_products.MAX_PARTS
    assert all(size % history_products.ROWS == 0 for size in sizes[:-1])
    assert len(sizes) == 1 or sizes[-1] > 1
    assert step_history.WHOLE.sizes(rows) == [rows]


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="a GPU has one part")
@pytest.mark.parametrize("options", [{}, {"step_budget": 9}, {"history_dtype": "float64"}])
def test_filled_rows_give_the_same_solution(options, monkeypatch, x64):
    whole = solve(**options)
    monkeypatch.setattr(step_history, "LARGE", 0)
    filled = solve(**options)
    np.testing.assert_allclose(filled.z, whole.z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(filled.abs_trace, whole.abs_trace, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="a GPU has one part")
def test_the_inverse_is_put_together(monkeypatch, x64):
    y = jax.random.normal(jax.random.key(1), (3, 500))
    whole = solve(keep_inverse=True).inverse
    monkeypatch.setattr(step_history, "LARGE", 0)
    filled = solve(keep_inverse=True).inverse
    assert filled.steps.shape == whole.steps.shape
    expected = inverse_product(whole, y)
    np.testing.assert_allclose(inverse_product(filled, y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="a GPU has one part")
def test_large_histories_alone_have_parts():
    def access(features, dtype=jnp.float32, **options):
        z = jax.ShapeDtypeStruct((8, features), jnp.float32)
        return step_history.choose(False, z, 17, dtype, **options)

    assert access(2**15) is step_history.FILLED
    assert access(2**14) is step_history.WHOLE  # 9 MB
    assert access(2**16, jnp.bfloat16) is step_history.WHOLE
    assert access(2**15, alone=False) is step_history.OF_SLOTS
    any_batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 65536"), jnp.float32)
    assert step_history.choose(False, any_batch, 17, jnp.float32) is step_history.WHOLE


@pytest.mark.skipif(hardware.target().platform != "cpu", reason="rounds alike on CPUs")
@pytest.mark.parametrize("rows", [1, 7, 17, 59, 65])
def test_each_slot_reads_its_own_rows(rows):
    """To the bit as all rows would give; rows past the next part are not read."""
    slots, features = 4, 300
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    filled = jnp.asarray([0, 1, (rows + 1) // 2, rows])
    row = jnp.arange(rows)[None]
    known = row < filled[:, None]
    steps = jax.random.normal(a, (slots, 1, rows, features))
    steps = jnp.where(known[:, None, :, None], steps, 0)
    weights = jnp.where(known, jax.random.normal(b, (slots, rows)), 0)[:, None]
    g, last = jax.random.normal(c, (slots, 1, features)), jax.random.normal(d, (slots, 1, features))

    def both(access, steps):
        return jax.jit(jax.vmap(lambda *x: access.inner_products((x[0],), *x[1:])))(
            steps, filled, g, last
        ), jax.jit(jax.vmap(lambda *x: access.combination((x[0],), *x[1:])))(
            steps, filled, weights, g, last
        )

    expected = both(step_history.WHOLE, steps)
    chex.assert_trees_all_equal(both(step_history.OF_SLOTS, steps), expected)
    ends = np.cumsum([0, *history_products.split(rows)])
    read = ends[np.searchsorted(ends, filled)]
    beyond = row >= read[:, None]
    unread = jnp.where(beyond[:, None, :, None], jnp.nan, steps)
    chex.assert_trees_all_equal(both(step_history.OF_SLOTS, unread), expected)
