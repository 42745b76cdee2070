"""Programs that are compiled once and found again by the next process."""

import os
from pathlib import Path

import jax
from absl import logging


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache, in a folder of the user's.

    The folder is `$JAX_COMPILATION_CACHE_DIR` where that is set (JAX's own way of choosing it),
    else `mdeq_jax/jax` in `$XDG_CACHE_HOME` or, without that, in `~/.cache`. Processes may share
    it: what another one is still writing is compiled again. It may be deleted at any time.

    Returns:
        The folder; None, and a warning, where it cannot be written, and all is compiled anew.
    """
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
