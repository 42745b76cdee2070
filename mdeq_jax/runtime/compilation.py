"""How programs are compiled, and that they are found again by the next process."""

import os
from pathlib import Path

import jax
import jaxlib
from absl import logging

_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def choose_convolutions() -> None:
    """On CPUs under jaxlib 0.10.2: XLA's own convolutions, YNNPACK's being half as fast there.

    XLA reads its flags once, when JAX first computes something: to be called before. `XLA_FLAGS`
    that speak of YNNPACK already are left as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ == "0.10.2" and _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=-individual_convolution".lstrip()


def keep_compiled_programs(keep: bool = True) -> Path | None:
    """Turns JAX's persistent compilation cache on, in a folder of the user's, or off.

    The folder is `$JAX_COMPILATION_CACHE_DIR` where that is set (JAX's own way of choosing it),
    else `mdeq_jax/jax` in `$XDG_CACHE_HOME` or, without that, in `~/.cache`. Processes may share
    it: what another one is still writing is compiled again. It may be deleted at any time.

    Returns:
        The folder; None where nothing is kept: it was turned off, or cannot be written (a warning).
    """
    if not keep:  # whichever folder was chosen
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    chosen = jax.config.jax_compilation_cache_dir
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
