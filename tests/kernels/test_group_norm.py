"""Group norm as Pallas kernels: compared with the reference form, and lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.kernels import channel_programs
from mdeq_jax.layers import group_norm
from tests.helpers.jaxprs import primitives

# Height, width, channels, groups. They cover one block and several, groups that share a program,
# sizes that are not powers of two, and a last block that is not full.
SHAPES = [(4, 4, 24, 8), (3, 5, 20, 4), (9, 7, 40, 2), (6, 6, 6, 1), (5, 6, 120, 8)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(channel_programs, "BLOCK", 512)


def assert_close(ours, exact, *, rtol=0.0, of_largest=1e-10):
    """Leaf by leaf, to a share of each number and a share of the leaf's largest."""

    def check(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=of_largest * np.abs(b).max())

    jax.tree.map(check, ours, exact)


def inputs(shape, *, residual, dtype=jnp.float64):
    *size, channels, _ = shape
    keys = jax.random.split(jax.random.key(0), 5)
    x = 1 + 2 * jax.random.normal(keys[0], (2, *size, channels), dtype)
    affine = {
        name: jax.random.normal(key, (channels,)) for name, key in zip(("scale", "bias"), keys[1:])
    }
    added = jax.random.normal(keys[3], x.shape, dtype) if residual else None
    return (x, affine, added), jax.random.normal(keys[4], x.shape, dtype)


def derivatives(norm, args, u):
    """Value, pullback of u, and the gradient of a function of the pullback."""

    def pullback(args, u):
        return jax.vjp(norm, *args)[1](u)

    def length(args, u):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(pullback(args, u)))

    return norm(*args), pullback(args, u), jax.grad(length, (0, 1))(args, u)


@pytest.mark.parametrize(
    ("shape", "residual", "relu"),
    [(shape, True, True) for shape in SHAPES]
    + [(SHAPES[1], *others) for others in ((False, False), (False, True), (True, False))],
)
def test_value_and_derivatives(shape, residual, relu, as_on_gpu, x64):
    args, u = inputs(shape, residual=residual)

    def compute(pallas):
        def norm(x, affine, added):
            return group_norm(x, shape[-1], affine, residual=added, relu=relu, pallas=pallas)

        return jax.jit(lambda *args: derivatives(norm, args, u))

    assert_close(as_on_gpu(compute(True), *args), compute(False)(*args))


def test_without_scale_and_bias(as_on_gpu, x64):
    (x, _, _), u = inputs(SHAPES[1], residual=False)

    def value_and_pullback(x, pallas):
        y, pullback = jax.vjp(lambda x: group_norm(x, 4, pallas=pallas), x)
        return y, pullback(u)

    assert_close(as_on_gpu(value_and_pullback, x, True), value_and_pullback(x, False))


def test_samples_do_not_influence_each_other(as_on_gpu, x64):
    """Under `jax.vmap`, and a sample that is not finite."""
    (x, affine, _), _ = inputs(SHAPES[0], residual=False)
    x = x.at[1].set(jnp.nan)
    norm = jax.vmap(lambda x: group_norm(x[None], 8, affine, relu=True, pallas=True)[0])
    y = as_on_gpu(norm, x)
    expected = group_norm(x[:1], 8, affine, relu=True)[0]
    np.testing.assert_allclose(y[0], expected, rtol=1e-10, atol=1e-10)
    assert jnp.isnan(y[1]).all()


def test_no_maximum_that_drops_nan(as_on_gpu):
    """Maxima of Pallas drop NaN on a GPU, but not in the interpreter."""

    def value_and_pullback(x):
        y, pullback = jax.vjp(lambda x: group_norm(x, 2, residual=x, relu=True, pallas=True), x)
        return y, pullback(y)

    found = as_on_gpu(primitives, value_and_pullback, jnp.ones((2, 4, 4, 8)))
    assert found["pallas_call"] == 2
    assert not {"max", "min"} & set(found)


def test_bfloat16_is_rounded_once(as_on_gpu):
    args, u = inputs(SHAPES[2], residual=True, dtype=jnp.bfloat16)

    def value_and_pullback(args, u, pallas):
        def norm(x, affine, added):
            return group_norm(x, 2, affine, residual=added, relu=True, pallas=pallas)

        y, pullback = jax.vjp(norm, *args)
        return y, pullback(u)

    half = as_on_gpu(value_and_pullback, args, u, True)
    assert {leaf.dtype for leaf in jax.tree.leaves((half[0], half[1][0], half[1][2]))} == {
        jnp.dtype(jnp.bfloat16)
    }
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (args, u))
    exact = value_and_pullback(*wide, False)
    assert_close(half, exact, rtol=2.0**-8, of_largest=1e-6)


@pytest.mark.parametrize(
    ("size", "num_groups", "groups", "lanes"),
    # Whole sectors; whole vectors; as many groups as there are; none that would be too wide.
    [
        (20, 8, 2, 64),
        (15, 8, 4, 64),
        (3, 8, 8, 32),
        (5, 2, 2, 16),
        (33, 8, 1, 64),
        (160, 8, 1, 256),
    ],
)
def test_groups_of_a_program(size, num_groups, groups, lanes):
    block = channel_programs.choose_block(num_pixels=49, num_groups=num_groups, size=size)
    assert (block.groups, block.lanes, block.channels) == (groups, lanes, groups * size)
    assert block.pixels * block.times >= 49


def test_one_kernel_each_way_on_a_gpu(lowered_for_a_gpu):
    """Lowered only: compiling takes the CUDA plugin."""

    def pullback(x):
        return jax.vjp(lambda x: group_norm(x, 8, relu=True, pallas=True), x)[1](x)

    shape = jax.ShapeDtypeStruct((2, 8, 8, 24), jnp.float32)
    assert "triton" in lowered_for_a_gpu(pullback, shape)
    with hardware.compiling_for("gpu"):
        assert primitives(pullback, shape)["pallas_call"] == 2


def test_has_no_forward_mode(as_on_gpu):
    x = jnp.ones((1, 2, 2, 4))
    with pytest.raises(TypeError, match="forward-mode"):
        as_on_gpu(lambda: jax.jvp(lambda x: group_norm(x, 2, pallas=True), (x,), (x,)))
