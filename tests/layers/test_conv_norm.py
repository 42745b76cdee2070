"""Convolutions with groups and strides against PyTorch, and the forms for CPUs and others."""

import jax
import numpy as np
import pytest

from mdeq_jax import hardware
from mdeq_jax.layers import GroupedConv, GroupedDense, grouped_conv2d, grouped_orthogonal

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("x64")

CASES = {  # height, width, c_in, c_out, size, stride, padding, groups
    "stem": (15, 14, 3, 8, 7, 2, 3, 1),
    "patches": (9, 13, 3, 8, 4, 4, 0, 1),
    "halving": (8, 6, 4, 8, 2, 2, 0, 1),
    "shortcut": (7, 8, 4, 8, 1, 2, 0, 1),
    "strided": (7, 8, 4, 8, 3, 2, 1, 1),
    "grouped": (7, 5, 8, 12, 5, 1, 2, 4),
    "grouped_1x1": (7, 5, 8, 12, 1, 1, 0, 4),
    "depthwise": (7, 5, 6, 6, 3, 1, 1, 6),
    "unpadded": (7, 5, 6, 6, 3, 1, 0, 2),
}


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("case", CASES)
def test_as_in_pytorch(case, platform):
    height, width, c_in, c_out, size, stride, padding, groups = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, c_in, height, width))
    kernel = rng.standard_normal((c_out, c_in // groups, size, size))
    torch_x, torch_kernel = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    expected = torch.nn.functional.conv2d(
        torch_x, torch_kernel, stride=stride, padding=padding, groups=groups
    )
    cotangent = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(cotangent))

    def conv(x, kernel):
        return grouped_conv2d(x, kernel, stride, padding, groups)

    with hardware.compiling_for(platform):
        y, pullback = jax.vjp(conv, x.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0))
        dx, dkernel = pullback(cotangent.transpose(0, 2, 3, 1))
    for actual, wanted in (
        (y.transpose(0, 3, 1, 2), expected.detach()),
        (dx.transpose(0, 3, 1, 2), torch_x.grad),
        (dkernel.transpose(3, 2, 0, 1), torch_kernel.grad),
    ):
        np.testing.assert_allclose(actual, wanted.numpy(), atol=1e-12)


def test_initialisation():
    """PyTorch's defaults, and orthogonal over all groups together."""
    x = np.ones((1, 6, 6, 8))
    conv = GroupedConv(16, 3, groups=2)
    kernel = conv.init(jax.random.key(0), x)["params"]["kernel"]
    assert kernel.shape == (3, 3, 4, 16) and np.abs(kernel).max() <= 36**-0.5
    assert np.abs(kernel).max() > 0.9 * 36**-0.5
    kernel = GroupedDense(5, kernel_init=grouped_orthogonal).init(
        jax.random.key(0), np.ones((3, 2, 4))
    )["params"]["kernel"]
    matrix = np.asarray(kernel).swapaxes(1, 2).reshape(15, 4)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-6)
