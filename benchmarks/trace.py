"""The time of each kernel in a running program, by JAX's profiler.

Pieces of a program that are compiled and timed separately run with other neighbours, caches and
memory, and their times need not add up to the whole. Here the program runs unchanged, and the
profiler reports each of its kernels.
"""

import gzip
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.hlo import Instruction

_CONTROL = ("while", "conditional", "call")


class Span(NamedTuple):
    """One run of a kernel: the instruction's name, start and end in seconds."""

    name: str
    start: float
    end: float


def trace(call: Callable, runs: int) -> tuple[list[Span], float]:
    """The kernels of a compiled program as they run.

    Args:
        call: runs the program and returns arrays; it is called once to warm up.
        runs: traced runs.

    Returns:
        The spans that ran, loops and branches included, and the seconds on the clock.

    Raises:
        RuntimeError: the profiler reported no kernels.
    """
    jax.block_until_ready(call())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(runs):
                jax.block_until_ready(call())
            seconds = time.perf_counter() - start
        files = [gzip.decompress(file.read_bytes()) for file in Path(folder).rglob("*.json.gz")]
    spans = [
        Span(event["args"]["hlo_op"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for file in files
        for event in json.loads(file)["traceEvents"]
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {})
    ]
    if not spans:
        raise RuntimeError(
            f"JAX's profiler reported no kernels on {jax.devices()[0].device_kind}. "
            "Without them the time of the parts of a step is unknown."
        )
    return spans, seconds


def share_out(spans: list[Span], parts: dict[str, set[str]]) -> dict[str, float]:
    """Seconds on the clock for each part of a program, whose kernels may run side by side.

    Args:
        spans: what ran.
        parts: names of instructions by part. While kernels of several parts run, the time is that
            of the first of these.

    Returns:
        Seconds by part: those in which one of its kernels ran, and none of an earlier part.
    """
    seconds, names, before = {}, set(), 0.0
    for part, more in parts.items():
        names |= more
        covered = _covered(sorted(span[1:] for span in spans if span.name in names))
        seconds[part], before = covered - before, covered
    return seconds


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals, sorted by their start."""
    total, reached = 0.0, -math.inf
    for start, end in intervals:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def kernels(program: dict[str, list[Instruction]], name: str) -> Iterator[Instruction]:
    """The instructions that one run of a computation runs itself: loops are left out."""
    for instruction in program[name]:
        if instruction.operation not in _CONTROL:
            yield instruction
        elif instruction.operation != "while":
            for called in _called(instruction):
                yield from kernels(program, called)


def _called(instruction: Instruction) -> list[str]:
    roles = ("to_apply", "true_computation", "false_computation")
    names = [instruction.called(role) for role in roles]
    if branches := re.search(r"branch_computations=\{([^}]*)\}", instruction.text):
        names += re.findall(r"%([\w.\-]+)", branches.group(1))
    return [name for name in names if name]


def operation_name(instruction: Instruction) -> str:
    """Where in the traced Python program an instruction comes from, or an empty string."""
    found = re.search(r'op_name="([^"]*)"', instruction.text)
    return found.group(1) if found else ""
