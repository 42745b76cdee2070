"""Counts of the kernels in a compiled program's text, and of the bytes they read and write.

XLA's cost analysis sums over a whole program and counts the body of a loop once. Here each
computation that runs separately (the entry, the body of a loop, a branch) is counted separately.
"""

import math
import re
from typing import NamedTuple

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b(" + "|".join(_SIZES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NO_WORK = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all")
_NO_WORK += ("partition-id", "replica-id")
_CONTROL = ("while", "conditional")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    text: str

    def called(self, role: str) -> str | None:
        """The computation in a role: "calls", "body", ..."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.text)
        return found and found.group(1)


class Counts(NamedTuple):
    """Counts of one run of a computation, without the loops and branches that it starts.

    Attributes:
        kernels: instructions that are launched.
        bytes: bytes that they read and write. An array counts as the slice that a kernel touches.
        round_trips: conditions of loops and branches, for which a GPU waits for the host.
    """

    kernels: int
    bytes: int
    round_trips: int


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """A program's text, as `compiled.as_text()` gives it: computations, the entry's name."""
    found, entry, current = {}, None, None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found.setdefault(start.group(2), [])
            entry = start.group(2) if start.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            _, name, shape, operation, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
            current.append(Instruction(name, shape, operation, operands, line))
    if entry is None:
        raise ValueError("The text has no ENTRY computation: give that of a compiled program.")
    return found, entry


def counts(program: dict[str, list[Instruction]], name: str) -> Counts:
    """Of one computation of a program."""
    shapes = {instruction.name: instruction.shape for instruction in program[name]}
    kernels = moved = round_trips = 0
    for instruction in program[name]:
        if instruction.operation in _CONTROL:
            round_trips += 1
        elif instruction.operation == "call":  # kernels that are launched together
            inner = counts(program, instruction.called("to_apply"))
            kernels += inner.kernels
            moved += inner.bytes
            round_trips += inner.round_trips
        elif instruction.operation not in _NO_WORK:
            kernels += 1
            moved += _moved(program, instruction, shapes)
    return Counts(kernels, moved, round_trips)


def loops(program: dict[str, list[Instruction]], name: str) -> list[str]:
    """The bodies of the loops that a computation starts, in the order of their start."""
    bodies = []
    for instruction in program[name]:
        if instruction.operation == "while":
            bodies.append(instruction.called("body"))
        elif instruction.operation == "call":
            bodies += loops(program, instruction.called("to_apply"))
    return bodies


def _moved(program, instruction: Instruction, shapes: dict[str, str]) -> int:
    fused = program.get(instruction.called("calls"))
    if instruction.operation != "fusion" or fused is None:
        return size(instruction.shape) + sum(size(shapes[name]) for name in instruction.operands)
    inner = {line.name: line for line in fused}
    total, whole = 0, size(instruction.shape)
    parameters = [line for line in fused if line.operation == "parameter"]
    for parameter in parameters:
        uses = [line for line in fused if parameter.name in line.operands]
        of_it = [line for line in uses if line.operands[0] == parameter.name]
        slices = [line for line in of_it if line.operation in ("dynamic-slice", "slice")]
        updates = [line for line in of_it if line.operation == "dynamic-update-slice"]
        if uses and len(slices) + len(updates) == len(uses):
            # Only slices are read, and what is updated in place is not read or written elsewhere.
            total += sum(size(line.shape) for line in slices)
            for line in updates:
                whole += size(inner[line.operands[1]].shape) - size(line.shape)
        else:
            total += size(parameter.shape)
    return total + max(whole, 0)


def size(shape: str) -> int:
    """Bytes of a shape as a program's text writes it, tuples summed."""
    return sum(
        _SIZES[kind] * math.prod(int(n) for n in dimensions.split(",") if n)
        for kind, dimensions in _SHAPE.findall(shape)
    )
