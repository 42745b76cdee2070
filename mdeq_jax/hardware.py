"""The hardware that programs are compiled for, as one explicit value.

A few operations have a faster form for some hardware. Each has a reference form, which runs
anywhere, and one line that chooses by `target().platform`.
"""

from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, cast, get_args

import jax

Platform = Literal["cpu", "gpu", "tpu"]


class Target(NamedTuple):
    """The hardware that programs are compiled for.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        interpret: whether Pallas kernels run in JAX's interpreter, which works anywhere but is
            slow, instead of being compiled.
    """

    platform: Platform
    interpret: bool = False


# JAX includes this value in the keys of its tracing and compilation caches. A function that was
# traced for one target is traced again for another.
_override = jax.make_user_context(None)


def target() -> Target:
    """The target of `compiling_for`, or JAX's default backend; read while JAX traces.

    Raises:
        ValueError: JAX's default backend is not a CPU, GPU or TPU.
    """
    if _override.value is not None:
        return _override.value
    return _checked(jax.default_backend(), "JAX's default backend")


def compiling_for(platform: Platform, *, interpret: bool = False) -> AbstractContextManager[None]:
    """Sets the target within a `with` block, whatever hardware is present.

        with hardware.compiling_for("gpu", interpret=True):
            y = group_norm(x, 8, pallas=True)  # as on GPUs, computed on this CPU

    It affects this thread alone, and functions that are traced within the block.

    Args:
        platform: "cpu", "gpu" or "tpu".
        interpret: whether to interpret Pallas kernels.

    Raises:
        ValueError: unknown platform.
    """
    return _override(_checked(platform, "platform")._replace(interpret=interpret))


def _checked(platform: str, name: str) -> Target:
    if platform not in get_args(Platform):
        raise ValueError(f"{name} must be one of {get_args(Platform)}; got {platform!r}.")
    return Target(cast(Platform, platform))
