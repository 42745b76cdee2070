"""Linear layers at PyTorch's initialisation."""

from typing import Any

import flax.linen as nn

from mdeq_jax.layers.conv import torch_uniform


def torch_dense(
    fan_in: int, features: int, *, dtype: Any = None, name: str | None = None
) -> nn.Dense:
    """`flax.linen.Dense` with kernel and bias as `torch.nn.Linear(fan_in, features)` draws them.

    Args:
        fan_in: features of the input.
        features: of the output.
        dtype: to compute in; None: that of input and kernel.
        name: of the submodule.
    """
    uniform = torch_uniform(fan_in)
    return nn.Dense(features, dtype=dtype, kernel_init=uniform, bias_init=uniform, name=name)
