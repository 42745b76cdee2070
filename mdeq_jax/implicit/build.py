"""From `config.gradient` to a gradient, settings bound."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp

from mdeq_jax.implicit.equilibrium import equilibrium
from mdeq_jax.implicit.gradients import GRADIENTS
from mdeq_jax.solvers.options import check_choice, chosen_options, try_out

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def build_gradient(
    settings: "ConfigDict", forward: "ConfigDict", f_solver: Callable, b_solver: Callable
) -> Callable:
    """A gradient of `GRADIENTS` with the settings of `config.gradient`.

    Args:
        settings: `config.gradient`.
        forward: `config.solver.forward`, whose limits hold for a gradient's own iteration too.
        f_solver: the forward solver.
        b_solver: the backward solver, for gradients that solve the adjoint equation.

    Raises:
        ValueError: unknown name, an option that this gradient does not have, or a value that it
            refuses.
    """
    check_choice("gradient.name", settings.name, GRADIENTS)
    info = GRADIENTS[settings.name]
    options = chosen_options(info.function, settings, "gradient")
    if info.solves_backward:
        options["b_solver"] = b_solver
    if info.own_iteration:
        steps = options.setdefault("steps", forward.max_steps)
        if steps > forward.max_steps:
            raise ValueError(
                f"gradient.steps={steps} is above solver.forward.max_steps={forward.max_steps}, "
                f"which limits the steps of {settings.name!r} too. Raise it, or unset "
                "gradient.steps to take as many."
            )
        options |= {"tol": forward.tol, "stop_mode": forward.stop_mode}
    if info.needs_inverse and forward.name != "broyden":
        raise ValueError(
            f"gradient.name={settings.name!r} takes the inverse estimate of a forward Broyden "
            f"solve, but solver.forward.name={forward.name!r}. Set it to 'broyden', or choose "
            "another gradient.name."
        )
    gradient = partial(info.function, **options)

    def cosine(params, z, x):
        return jnp.cos(z)

    try_out(
        "gradient",
        lambda z: equilibrium(cosine, (), (), z, f_solver=f_solver, gradient=gradient)[0],
    )
    return gradient
