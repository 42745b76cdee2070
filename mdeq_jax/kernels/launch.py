"""Launching kernels of our own, written in Pallas, on NVIDIA GPUs.

They are chosen by `config.pallas`; without it, and on CPUs, XLA writes all kernels. What a kernel
computes stands beside it in plain JAX too, which is the reference that tests compare it with.
"""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl

# JAX's interpreter in the place of a GPU, for tests: what a kernel computes, slowly, anywhere.
INTERPRET = False


def launch(kernel: Callable, grid: tuple[int, ...], out_shape, *args, num_warps: int):
    """Runs `kernel(*refs of args, *refs of results)` once for each point of `grid`.

    Under `jax.shard_map` it takes `check_vma=False`.

    Args:
        kernel: a Pallas kernel.
        grid: of programs, at most three axes.
        out_shape: of the results, a tree of `jax.ShapeDtypeStruct`; None is nothing.
        args: trees of arrays, of which a kernel sees each whole and reads the block that it works
            on; None is nothing.
        num_warps: warps of 32 threads a program.

    Raises:
        ImportError: this JAX has no Triton backend for Pallas any more.
    """
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=None if INTERPRET else triton().CompilerParams(num_warps=num_warps),
        interpret=INTERPRET,
    )(*args)


def triton():
    """`jax.experimental.pallas.triton`: loads and stores with masks.

    Raises:
        ImportError: this JAX does not have it.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise ImportError(
            f"JAX {jax.__version__} has no Triton backend for Pallas, which the kernels of "
            "config.pallas=True are written for: set config.pallas=False, or install a JAX that "
            "mdeq_jax is tested with (pyproject.toml)."
        ) from error
    return triton
