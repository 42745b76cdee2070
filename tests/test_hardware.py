"""The target of compilation: its default, the override, and JAX's caches."""

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax import hardware


def test_the_default_is_the_backend():
    assert hardware.target() == (jax.default_backend(), False)


def test_an_override_ends_with_its_block():
    before = hardware.target()
    with hardware.compiling_for("gpu", interpret=True):
        assert hardware.target() == ("gpu", True)
        with hardware.compiling_for("tpu"):
            assert hardware.target() == ("tpu", False)
        assert hardware.target() == ("gpu", True)
    assert hardware.target() == before


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match=r"platform must be one of .*; got 'cuda'"):
        hardware.compiling_for("cuda")


def test_jit_traces_once_for_each_target():
    """Also a jitted function within another one, as `apply_cell` in a training step."""
    traced = []

    @jax.jit
    def inner(x):
        traced.append(hardware.target().platform)
        return x

    @jax.jit
    def outer(x):
        return inner(x)

    for _ in range(2):
        outer(jnp.ones(3))
        with hardware.compiling_for("gpu"):
            outer(jnp.ones(3))
    assert traced == ["cpu", "gpu"]
