"""Launching Pallas kernels on NVIDIA GPUs, or in JAX's interpreter.

`config.pallas` chooses them, see `enabled`. Each has a reference form in plain JAX, which tests
compare it with and which other hardware uses.
"""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl

from mdeq_jax import hardware


def enabled(pallas: bool | None, num_programs: int, min_programs: int) -> bool:
    """Whether an operation uses its Pallas kernel; decided while JAX traces.

    Args:
        pallas: True uses it on every GPU, False never. None uses it on a GPU if this JAX can
            compile it and there is enough work.
        num_programs: programs that the kernel would be launched with.
        min_programs: programs that are enough work.
    """
    if hardware.target().platform != "gpu":
        return False
    if pallas is None:
        return num_programs >= min_programs and _has_triton()
    return pallas


def _has_triton() -> bool:
    try:
        triton()
    except ImportError:
        return False
    return True


def launch(kernel: Callable, grid: tuple[int, ...], out_shape, *args, num_warps: int):
    """Runs `kernel(*refs of args, *refs of results)` once for each point of `grid`.

    Within `hardware.compiling_for("gpu", interpret=True)` JAX interprets it on any hardware. Under
    `jax.shard_map` it needs `check_vma=False`.

    Args:
        kernel: a Pallas kernel.
        grid: numbers of programs, at most three axes.
        out_shape: tree of `jax.ShapeDtypeStruct`, the results; None stands for no array.
        *args: trees of arrays. A kernel sees each array whole and reads the block that it works
            on. None stands for no array.
        num_warps: warps of 32 threads in a program.

    Returns:
        The results, like `out_shape`.

    Raises:
        ImportError: this JAX has no Triton backend for Pallas.
    """
    interpret = hardware.target().interpret
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=None if interpret else triton().CompilerParams(num_warps=num_warps),
        interpret=interpret,
    )(*args)


def triton():
    """The module `jax.experimental.pallas.triton`: loads and stores with masks.

    Raises:
        ImportError: this JAX has no Triton backend for Pallas.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise ImportError(
            f"JAX {jax.__version__} has no Triton backend for Pallas, which the kernels of "
            "config.pallas=True need. Set config.pallas=False, or install a version of JAX that "
            "pyproject.toml allows."
        ) from error
    return triton
