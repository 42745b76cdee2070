"""Timing for all benchmarks: after a warm-up, repeated, and in turns.

Machines are noisy, because other work comes and goes and clocks change. Calls that are compared
therefore take turns, and the median of the runs is reported with its quartiles. A fixed pair of
convolutions is timed in the same turns. A time as a multiple of the pair's can be compared with
one measured later.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

PAIR = "convolution pair"


class Timing(NamedTuple):
    """Seconds a call.

    Attributes:
        median: median of the runs.
        low, high: first and third quartile.
        runs: number of runs; a run of a short call is many calls.
    """

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{1e3 * self.median:.4g} ms ({1e3 * self.low:.4g} to {1e3 * self.high:.4g})"


def measure_in_turn(
    calls: dict[str, Callable], repeats: int, *, min_seconds: float = 0.1
) -> dict[str, Timing]:
    """Times each call, one run of each in turn.

    Args:
        calls: name -> function without arguments that returns arrays.
        repeats: runs of each, after one call to warm up.
        min_seconds: a run repeats its call until it takes about this long, and waits for the
            device once, at its end.

    Returns:
        name -> seconds per call.
    """
    counts = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        counts[name] = 1 + int(min_seconds / max(time.perf_counter() - start, 1e-6))
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                out = call()
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: list) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def in_loop(function: Callable, times: int) -> Callable:
    """`function(fixed, states)`, applied `times` times in one compiled loop.

    XLA compiles it as it does inside a solver's loop. Every application has other states, by one
    number that comes from the previous application, because XLA moves constant work out of the
    loop. All results are kept, because XLA removes those that nobody reads.

    Args:
        function: (fixed, states) -> arrays.
        times: applications; divide the loop's time by it.

    Returns:
        A compiled function of `fixed` and `states`, which gives the last application's result.
    """

    def loop(fixed, states):
        def body(_, carry):
            states, last = carry
            number = 1e-30 * sum(leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(last))
            states = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(number.astype(x.dtype)), states)
            return states, function(fixed, states)

        return lax.fori_loop(1, times, body, (states, function(fixed, states)))[1]

    return jax.jit(loop)


def convolution_pair() -> Callable:
    """The fixed work: two 3x3 convolutions, 24 to 120 to 24 channels, on 32 images of 32x32."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (32, 32, 32, 24))
    widen = 0.1 * jax.random.normal(keys[1], (3, 3, 24, 120))
    narrow = 0.1 * jax.random.normal(keys[2], (3, 3, 120, 24))

    def conv(x, kernel):  # not that of the package, which changes
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    pair = jax.jit(lambda x, widen, narrow: conv(conv(x, widen), narrow))
    return lambda: pair(x, widen, narrow)


def describe_machine() -> str:
    """The devices and the version of JAX, for the head of a report."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        kind = f"{cores}-core CPU"
    else:
        kind = f"{jax.device_count()} x {device.device_kind}"
    return f"{kind}, JAX {jax.__version__}"
