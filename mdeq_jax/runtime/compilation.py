"""How programs are compiled, and where the next process finds them."""

import os
from importlib.util import find_spec
from pathlib import Path

import jax
import jaxlib
from absl import logging

# CUDA graphs of whole solver loops.
LOOP_GRAPHS = (
    "--xla_gpu_enable_command_buffer=+WHILE",
    "--xla_gpu_graph_min_graph_size=1",
)
# Devices of the CPU backend. Each runs its programs in one thread.
_DEVICES = "--xla_force_host_platform_device_count"
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
_NO_UNROLLING = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
_FEWER_LOOPS = ",xla_cpu_use_multi_output_fusion"
_OLDER_LOOPS = "--xla_cpu_use_fusion_emitters"
_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def choose_flags(quick: bool = False) -> None:
    """The choices below. Call it before JAX first computes something.

    Args:
        quick: `config.quick_compilation`, see `choose_short_loops`.
    """
    choose_convolutions()
    choose_loop_graphs()
    choose_short_loops(quick)


def choose_convolutions() -> None:
    """Chooses XLA's own convolutions on CPUs under jaxlib 0.10.2, where YNNPACK's are half as fast.

    Call it before JAX first computes something, which is when XLA reads its flags. `XLA_FLAGS` that
    mention YNNPACK already are left as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _jaxlib_version() == "0.10.2" and _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=-individual_convolution".lstrip()


def choose_short_loops(quick: bool = False) -> None:
    """Keeps LLVM from unrolling the loops of programs for CPUs.

    They compile in three quarters of the time and run as fast (docs/performance_log.md). Call it
    before JAX first computes something. `XLA_FLAGS` that mention these options already are left as
    they are.

    Args:
        quick: also make fewer and simpler loops. Programs compile in three quarters of the time
            again, but run up to a tenth slower.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" not in flags:
        flags = f"{flags} {_NO_UNROLLING}{_FEWER_LOOPS if quick else ''}".lstrip()
    # jaxlib 0.11 has no such flag, and refuses those that it does not know.
    if quick and _jaxlib_version() == "0.10.2" and _OLDER_LOOPS not in flags:
        flags = f"{flags} {_OLDER_LOOPS}=false"
    os.environ["XLA_FLAGS"] = flags


def options_for_one_call() -> dict[str, int | bool] | None:
    """`compiler_options` of a program that runs once, such as an initialisation; None: the usual.

    XLA for CPUs takes 4 times as long to optimise the loops of random numbers fully.
    """
    if jax.default_backend() != "cpu":
        return None
    options: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
    if _jaxlib_version() == "0.10.2":  # jaxlib 0.11 has no such option
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def _jaxlib_version() -> str:
    return jaxlib.__version__  # pyright: ignore[reportPrivateImportUsage]


def choose_loop_graphs() -> None:
    """Turns on CUDA graphs of whole solver loops if JAX's CUDA plugin is installed.

    Call it before JAX first computes something. `XLA_FLAGS` that mention command buffers already
    are left as they are. Measured with Pallas kernels on an H200 (benchmarks/RESULTS.md).
    """
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_command_buffer" not in flags and any(map(find_spec, plugins)):
        os.environ["XLA_FLAGS"] = " ".join((flags, *LOOP_GRAPHS)).lstrip()


def choose_device_per_core(*batch_sizes: int) -> None:
    """Makes a device of every CPU core, or of as many cores as divide these batch sizes.

    Each core then computes its own part of the batch, and does not wait for the others within a
    layer. Everything that is not mapped over the devices runs on one core. Call it before JAX first
    computes something. `XLA_FLAGS` that set the number of devices already are left as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DEVICES in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(n for n in range(1, (cores or 1) + 1) if not any(b % n for b in batch_sizes))
    if count > 1:
        os.environ["XLA_FLAGS"] = f"{flags} {_DEVICES}={count} {_ONE_THREAD}".lstrip()


def keep_compiled_programs(keep: bool = True) -> Path | None:
    """Turns JAX's persistent compilation cache on, in a folder of the user's, or off.

    The folder is `$JAX_COMPILATION_CACHE_DIR` if that is set (JAX's own variable), else
    `mdeq_jax/jax` in `$XDG_CACHE_HOME` or, without that, in `~/.cache`. Processes may share it: a
    program that another one is still writing is compiled again. It may be deleted at any time.

    Returns:
        The folder; None if nothing is kept, because the cache is off or cannot be written (which
        logs a warning).
    """
    if not keep:  # whichever folder was chosen
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "mdeq_jax", "jax")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = str(error)
    else:
        problem = None if os.access(folder, os.W_OK | os.X_OK) else "no permission to write"
    if problem is not None:
        logging.warning(
            "Compiled programs are not kept, as %s cannot be written (%s); set XDG_CACHE_HOME or "
            "JAX_COMPILATION_CACHE_DIR to a folder that can.",
            folder,
            problem,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
