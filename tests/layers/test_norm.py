import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.layers import BatchNorm, group_norm, resize_bilinear, upsample_nearest


def nchw(x):
    return np.array(x.transpose(0, 3, 1, 2))


@pytest.fixture
def x(x64):
    return 2 * jax.random.normal(jax.random.key(0), (3, 4, 6, 8)) + 1


@pytest.mark.parametrize("num_groups", [1, 2, 8])
def test_group_norm_is_pytorchs(x, num_groups):
    torch = pytest.importorskip("torch")
    scale, bias = np.arange(1.0, 9.0), np.arange(8.0)
    ours = group_norm(x, num_groups, {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)})
    theirs = torch.nn.functional.group_norm(
        torch.tensor(nchw(x)), num_groups, torch.tensor(scale), torch.tensor(bias)
    )
    np.testing.assert_allclose(nchw(ours), theirs.numpy(), atol=1e-12)


def test_group_norm_without_affine_normalises(x):
    y = group_norm(x, 4).reshape(3, 24, 4, 2)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-4)


def test_group_norm_keeps_float32_statistics_in_bfloat16():
    x = 1 + jax.random.normal(jax.random.key(0), (2, 32, 32, 8))
    half = group_norm(x.astype(jnp.bfloat16), 4)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), group_norm(x, 4), atol=0.03)


@pytest.mark.parametrize("use_affine", [True, False])
def test_batch_norm_is_pytorchs(x, use_affine):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(8, affine=use_affine).double()
    ours = BatchNorm(use_affine=use_affine)
    variables = ours.init(jax.random.key(0), x, train=False)
    for factor in (1.0, 0.5):  # two steps of running statistics
        y, mutated = ours.apply(variables, factor * x, train=True, mutable=["batch_stats"])
        variables = {**variables, **mutated}
        np.testing.assert_allclose(
            nchw(y), theirs(torch.tensor(nchw(factor * x))).detach().numpy(), atol=1e-6
        )
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=1e-6)
    theirs.eval()
    np.testing.assert_allclose(
        nchw(ours.apply(variables, x, train=False)),
        theirs(torch.tensor(nchw(x))).detach().numpy(),
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (7, 5), (1, 1)])
def test_resize_is_pytorchs_with_aligned_corners(x, size):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.interpolate(
        torch.tensor(nchw(x)), size=size, mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(nchw(resize_bilinear(x, size)), theirs.numpy(), atol=1e-12)


def test_upsample_nearest_repeats(x):
    expected = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(upsample_nearest(x, 2), expected)
