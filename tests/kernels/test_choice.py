"""When an operation uses its Pallas kernel."""

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax import hardware
from mdeq_jax.kernels import launch
from mdeq_jax.layers import group_norm
from mdeq_jax.solvers import broyden


def uses_pallas(function, *shapes) -> bool:
    with hardware.compiling_for("gpu", interpret=True):
        return "pallas_call" in str(jax.make_jaxpr(function)(*shapes))


@pytest.mark.parametrize("batch, expected", [(4, False), (32, True)])
def test_none_decides_by_the_batch(batch, expected):
    x = jax.ShapeDtypeStruct((batch, 4, 4, 128), jnp.float32)
    assert uses_pallas(lambda x: group_norm(x, 8, pallas=None), x) == expected
    z = jax.ShapeDtypeStruct((batch, 8 * 4096), jnp.float32)
    assert uses_pallas(lambda z: broyden(jnp.cos, z, max_steps=3, pallas=None).z, z) == expected


@pytest.mark.parametrize("side, expected", [(64, True), (72, False)])
def test_large_images_need_more_programs(side, expected):
    x = jax.ShapeDtypeStruct((32, side, side, 128), jnp.float32)  # 128 programs
    assert uses_pallas(lambda x: group_norm(x, 8, pallas=None), x) == expected


@pytest.mark.parametrize("pallas", [False, True])
def test_a_choice_is_kept_on_gpus(pallas):
    x = jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)
    assert uses_pallas(lambda x: group_norm(x, 8, pallas=pallas), x) == pallas


@pytest.mark.parametrize("pallas", [None, True])
def test_other_hardware_never_uses_them(pallas):
    assert not launch.enabled(pallas, 10_000, 64)
    with hardware.compiling_for("tpu"):
        assert not launch.enabled(pallas, 10_000, 64)


def test_none_does_without_the_triton_backend(monkeypatch):
    def missing():
        raise ImportError

    monkeypatch.setattr(launch, "triton", missing)
    with hardware.compiling_for("gpu"):
        assert not launch.enabled(None, 10_000, 64)
