"""Merging batch norms and convolutions into linear layers, in float64 (2105.01883, section 3.4).

Parameters and statistics are those of the Flax modules; every function returns those of the merged
form, as float64 numpy arrays.
"""

import numpy as np
from einops import rearrange, repeat

from mdeq_jax.layers.group_norm import EPS


def merge_conv_norm(params: dict, stats: dict) -> dict:
    """`ConvNorm` to its merged form.

    Args:
        params: {"conv": {"kernel": `[k, k, C_in / groups, C_out]`}, "norm": ...}.
        stats: {"norm": {"mean": `[C_out]`, "var": `[C_out]`}}.
    """
    scale, shift = scale_and_shift(params["norm"], stats["norm"])
    return {"conv": {"kernel": _float64(params["conv"]["kernel"]) * scale, "bias": shift}}


def scale_and_shift(params: dict, stats: dict) -> tuple[np.ndarray, np.ndarray]:
    """`[C]` t and b such that a batch norm in evaluation mode is x t + b."""
    scale = _float64(params["affine"]["scale"]) / np.sqrt(_float64(stats["var"]) + EPS)
    return scale, _float64(params["affine"]["bias"]) - _float64(stats["mean"]) * scale


def convolution_matrix(kernel: np.ndarray, groups: int, partition: tuple[int, int]) -> np.ndarray:
    """The convolution of a zero-padded partition as one matrix a group.

    The entry from pixel (y', x') and channel c to pixel (y, x) and channel o is
    kernel[y' - y + p, x' - x + p, c, o] with p = (k - 1) / 2, or 0 outside the kernel.

    Args:
        kernel: `[k, k, C_in / groups, C_out]`, k odd.
        groups: of channels.
        partition: height and width.

    Returns:
        `[groups, h w C_in / groups, h w C_out / groups]`, both orders (row, column, channel).

    Raises:
        ValueError: k is even.
    """
    size, _, c_in, _ = kernel.shape
    if size % 2 == 0:
        raise ValueError(
            f"Only kernels of odd size keep the size of a map and can be merged; got {size}x{size}."
        )
    (h, w), pad = partition, size // 2
    taps = rearrange(_float64(kernel), "i j c (g o) -> i j g c o", g=groups)
    matrix = np.zeros((groups, h, w, c_in, h, w, taps.shape[-1]))
    for i in range(size):
        for j in range(size):
            y, x = np.meshgrid(*map(_inside, (i - pad, j - pad), partition), indexing="ij")
            matrix[:, y + i - pad, x + j - pad, :, y, x, :] = taps[i, j]
    return rearrange(matrix, "g i j c h w o -> g (i j c) (h w o)")


def _inside(offset: int, length: int) -> np.ndarray:
    """Positions whose neighbour at `offset` is within 0..length - 1."""
    return np.arange(max(0, -offset), min(length, length - offset))


def merge_repmlp(params: dict, stats: dict, partition: tuple[int, int]) -> dict:
    """`RepMLP` to its merged form."""
    h, w = partition
    groups = params["fc3"]["kernel"].shape[0]
    scale, shift = (
        rearrange(v, "(h w g o) -> g (h w o)", h=h, w=w, g=groups)
        for v in scale_and_shift(params["fc3_norm"], stats["fc3_norm"])
    )
    kernel, bias = _float64(params["fc3"]["kernel"]) * scale[:, None, :], shift
    for name in _branches(params):
        conv = merge_conv_norm(params[name], stats[name])["conv"]
        kernel += convolution_matrix(conv["kernel"], groups, partition)
        bias = bias + repeat(conv["bias"], "(g o) -> g (h w o)", g=groups, h=h, w=w)
    merged = {"fc3": {"kernel": kernel, "bias": bias}}
    if "global_perceptron" in params:
        merged["global_perceptron"] = _merge_global_perceptron(
            params["global_perceptron"], stats["global_perceptron"]
        )
    return merged


def _merge_global_perceptron(params: dict, stats: dict) -> dict:
    """The batch norm of `[B, A, B', C]` means goes into the first layer, whose order is (C, A B').

    fc1(s v + c) = (fc1 s) v + (bias + fc1 c).
    """
    first = params["fc1"]
    kernel = _float64(first["kernel"])
    scale, shift = scale_and_shift(params["norm"], stats["norm"])
    scale, shift = (np.repeat(v, kernel.shape[0] // v.size) for v in (scale, shift))
    return {
        "fc1": {
            "kernel": kernel * scale[:, None],
            "bias": _float64(first["bias"]) + shift @ kernel,
        },
        "fc2": {name: _float64(array) for name, array in params["fc2"].items()},
    }


def merge_repmlp_block(params: dict, stats: dict, partition: tuple[int, int]) -> dict:
    """`RepMLPBlock` of RepMLPNet to its merged form: "locality injection" (2112.11081)."""
    h, w = partition
    scale, shift = scale_and_shift(params["fc3_norm"], stats["fc3_norm"])  # one a shareset
    kernel = _float64(params["fc3"]["kernel"]) * scale[:, None, None]
    for name in _branches(params):
        scale, offset = scale_and_shift(params[name]["norm"], stats[name]["norm"])
        taps = _float64(params[name]["kernel"]) * scale
        kernel += convolution_matrix(taps, scale.size, partition)
        shift = shift + offset
    bias = repeat(shift, "s -> s (h w)", h=h, w=w)
    gate = {
        layer: {name: _float64(array) for name, array in weights.items()}
        for layer, weights in params["gate"].items()
    }
    return {"fc3": {"kernel": kernel, "bias": bias}, "gate": gate}


def _branches(params: dict) -> list[str]:
    """The names of the local perceptron's convolutions."""
    return [name for name in params if name.startswith("repconv")]


def _float64(array) -> np.ndarray:
    return np.asarray(array, np.float64)
