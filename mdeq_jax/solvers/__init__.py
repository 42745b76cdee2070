"""Batched root solvers for f(z) = z, which run inside `jit` and stop each sample separately.

A solver is a function `(f, z0, *, max_steps, tol, stop_mode, step_budget, record_at, ...)` that
returns a `Solution`. Its further keyword-only arguments are its options in `config.solver`.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from mdeq_jax.solvers.anderson import anderson
from mdeq_jax.solvers.broyden import broyden
from mdeq_jax.solvers.fixed_point_iteration import fixed_point_iteration
from mdeq_jax.solvers.inverse import (
    InverseEstimate,
    inverse_product,
    transposed_inverse_product,
)
from mdeq_jax.solvers.options import check_choice, chosen_options, try_out
from mdeq_jax.solvers.solution import Solution, Status
from mdeq_jax.solvers.validate import STOP_MODES

SOLVERS: dict[str, Callable[..., Solution]] = {
    "broyden": broyden,
    "anderson": anderson,
    "fixed_point_iteration": fixed_point_iteration,
}


def build_solver(settings, where: str, *, pallas: bool | None = False) -> Callable[..., Solution]:
    """A solver of `SOLVERS` with the settings of `config.solver.forward` or `.backward`.

    Args:
        settings: `name`, `max_steps`, `tol`, `stop_mode`, and options, None if not set.
        where: name of `settings` in error messages.
        pallas: whether a solver that has Pallas kernels uses them; None lets it decide.

    Raises:
        ValueError: unknown name or stop mode, an option that this solver does not have, or a
            value that it refuses.
    """
    check_choice(f"{where}.name", settings.name, SOLVERS)
    check_choice(f"{where}.stop_mode", settings.stop_mode, STOP_MODES)
    function = SOLVERS[settings.name]
    common = {name: settings[name] for name in ("max_steps", "tol", "stop_mode")}
    options = chosen_options(function, settings, where, common=("name", *common))
    if "pallas" in inspect.signature(function).parameters:
        options["pallas"] = pallas
    solver = partial(function, **common, **options)
    try_out(where, lambda z: solver(jnp.cos, z).z)
    return solver


__all__ = [
    "SOLVERS",
    "InverseEstimate",
    "Solution",
    "Status",
    "anderson",
    "broyden",
    "build_solver",
    "fixed_point_iteration",
    "inverse_product",
    "transposed_inverse_product",
]
