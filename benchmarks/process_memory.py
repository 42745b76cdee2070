"""The memory that a call needs, by the operating system's count."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(call: Callable) -> int | None:
    """Bytes by which a call raises this process's resident memory at its peak.

    Memory that earlier calls freed is given back to the system first, so that it counts again.

    Args:
        call: function without arguments, which waits for its result.

    Returns:
        The bytes; None where the kernel is not Linux or does not allow to reset the peak.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # the peak becomes the present size
        before = _kilobytes("VmRSS")
        call()
        return max(0, 1024 * (_kilobytes("VmHWM") - before))
    except (OSError, KeyError):
        return None


def _kilobytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0])
