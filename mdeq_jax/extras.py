"""Errors that name the extra of `pyproject.toml` which a room needs.

The core (solvers, layers, gradients, models) needs JAX, NumPy, Flax and einops alone. The other
rooms call `require_extra` before their own imports.
"""

import importlib.util


def require_extra(extra: str, room: str, modules: tuple[str, ...]) -> None:
    """Raises an error with the remedy if a room's optional dependencies are not installed.

    Nothing is imported: a missing module is reported when the room is imported, not at first use.

    Args:
        extra: name of the extra in `pyproject.toml`.
        room: the package that needs it, e.g. "mdeq_jax.data".
        modules: top-level modules that the room imports, now or later.

    Raises:
        ImportError: at least one module is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{room} needs {', '.join(missing)}, which the extra {extra!r} installs: "
            f'pip install "mdeq_jax[{extra}]" (or pip install -e ".[{extra}]" in the repository).'
        )
