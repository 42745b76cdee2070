"""A device's highest rates of arithmetic and memory traffic, from a table or measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.analytic_cost import Work
from benchmarks.timing import measure_in_turn


class Roof(NamedTuple):
    """The limits of all local devices together.

    Attributes:
        flops: operations per second.
        bandwidth: bytes per second.
        source: where these come from.
    """

    flops: float
    bandwidth: float
    source: str


class Peak(NamedTuple):
    """Of one device, dense, by the data sheet: TF32 and bfloat16 operations, bytes per second."""

    tf32: float
    bfloat16: float
    bandwidth: float
    source: str


# By the beginning of JAX's `device_kind`. The sheets' tensor-core figures are with sparsity, twice
# these. Float32 networks run their convolutions in TF32 on these devices, JAX's default.
PEAKS = {
    "NVIDIA H200": Peak(495e12, 989e12, 4.8e12, "NVIDIA H200 data sheet, SXM"),
    "NVIDIA H100 80GB HBM3": Peak(495e12, 989e12, 3.35e12, "NVIDIA H100 data sheet, SXM"),
    "NVIDIA A100-SXM4-80GB": Peak(156e12, 312e12, 2.039e12, "NVIDIA A100 data sheet, SXM 80 GB"),
    "NVIDIA A100-SXM4-40GB": Peak(156e12, 312e12, 1.555e12, "NVIDIA A100 data sheet, SXM 40 GB"),
}


def roof(precision: str) -> Roof:
    """The roof of the local devices for networks of a precision, "float32" or "bfloat16"."""
    kind, count = jax.devices()[0].device_kind, jax.local_device_count()
    for name, peak in PEAKS.items():
        if kind.startswith(name):
            flops = peak.tf32 if precision == "float32" else peak.bfloat16
            return Roof(count * flops, count * peak.bandwidth, peak.source)
    return _measured(precision)


def _measured(precision: str) -> Roof:
    """A matrix product, and an array read and written in place, on the first device."""
    side, length = 2048, 2**25
    matrix = jnp.ones((side, side), precision)
    product = jax.jit(jnp.matmul)
    # In place, or what is measured is how fast the system hands out fresh memory.
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(length, jnp.float32)]

    def stream():
        held[0] = increment(held[0])
        return held[0]

    times = measure_in_turn({"product": lambda: product(matrix, matrix), "stream": stream}, 5)
    return Roof(
        2.0 * side**3 / times["product"].low,
        2.0 * 4 * length / times["stream"].low,
        f"measured: a product of {side}x{side} matrices, {4 * length >> 20} MiB read and written",
    )


def beside_roof(work: Work, seconds: float, limit: Roof) -> dict:
    """Achieved rates, and their shares of the roof.

    Returns:
        "flops_per_second", "flops_share", "bytes_per_second", "bytes_share".
    """
    flops, bandwidth = work.flops / seconds, work.bytes / seconds
    return {
        "flops_per_second": flops,
        "flops_share": flops / limit.flops,
        "bytes_per_second": bandwidth,
        "bytes_share": bandwidth / limit.bandwidth,
    }
