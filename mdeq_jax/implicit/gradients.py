"""The table of gradients: for each, everything that other parts of the project need to know."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from mdeq_jax.implicit.binding import bound_settings, keywords_of, unbound
from mdeq_jax.implicit.ift import ift
from mdeq_jax.implicit.phantom import neumann, one_step, phantom
from mdeq_jax.implicit.reversible import reversible
from mdeq_jax.implicit.shine import shine
from mdeq_jax.implicit.unroll import unroll

# Keyword arguments that `equilibrium` or the forward solver's settings supply.
_SUPPLIED = ("b_solver", "inverse", "tol", "stop_mode", "step_budget")


class GradientInfo(NamedTuple):
    """A gradient of an equilibrium, and its properties.

    Attributes:
        function: `function(f, params, x, z_star, backward_stats, **options) -> z`. With
            `own_iteration`: `function(f, params, x, z0, backward_stats, step_budget=...,
            **options) -> (z, Solution)`.
        solves_backward: solves the adjoint equation with a `b_solver`.
        solves_only_with: option without which it neither solves nor can fail; None if none is
            needed.
        own_iteration: finds the state itself, without a forward solver.
        needs_inverse: needs the inverse estimate of a forward Broyden solve as `inverse`.
        is_series: differentiates a truncated, damped series (options `steps` and `tau`, both 1
            where it lacks them).
        reports_residual: writes a residual into its `BackwardStats`.
        can_fail: aims at a tolerance, so that the status in its `BackwardStats` means something.
    """

    function: Callable
    solves_backward: bool = False
    solves_only_with: str | None = None
    own_iteration: bool = False
    needs_inverse: bool = False
    is_series: bool = False
    reports_residual: bool = False
    can_fail: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the gradient is that of the equilibrium, from one full solve at z*."""
        return self.solves_backward and self.solves_only_with is None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its settings: keyword arguments that nothing else supplies."""
        return tuple(name for name in keywords_of(self.function) if name not in _SUPPLIED)

    def solves_with(self, settings: Mapping) -> bool:
        """Whether it solves the adjoint equation, given its settings (by name; None is unset)."""
        return self.solves_backward and self._is_active(settings)

    def can_fail_with(self, settings: Mapping) -> bool:
        """Whether its status means something, given its settings."""
        return self.can_fail and self._is_active(settings)

    def _is_active(self, settings: Mapping) -> bool:
        return self.solves_only_with is None or bool(settings.get(self.solves_only_with))


GRADIENTS: dict[str, GradientInfo] = {
    "ift": GradientInfo(ift, solves_backward=True, reports_residual=True, can_fail=True),
    "phantom": GradientInfo(phantom, is_series=True),
    "neumann": GradientInfo(neumann, is_series=True, reports_residual=True),
    "one_step": GradientInfo(one_step, is_series=True),
    "shine": GradientInfo(
        shine,
        solves_backward=True,
        solves_only_with="refine_steps",
        needs_inverse=True,
        reports_residual=True,
        can_fail=True,
    ),
    "reversible": GradientInfo(
        reversible, own_iteration=True, reports_residual=True, can_fail=True
    ),
    "unroll": GradientInfo(unroll, own_iteration=True),
}


def gradient_info(gradient: str | Callable) -> GradientInfo:
    """The row of a name, or of a function of the table with or without settings bound.

    A function that is not in the table gets a row of defaults.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {sorted(GRADIENTS)}; got {gradient!r}.")
        return GRADIENTS[gradient]
    function = unbound(gradient)
    rows = (info for info in GRADIENTS.values() if info.function is function)
    return next(rows, GradientInfo(function))


def bind_b_solver(gradient: Callable, b_solver: Callable | None) -> Callable:
    """`gradient` with `b_solver` for its adjoint equation.

    Args:
        gradient: a gradient function, perhaps with settings bound.
        b_solver: solver to bind; None leaves the gradient as it is.

    Raises:
        ValueError: the gradient has a `b_solver` already, or does not take one. A gradient of the
            table that solves nothing is returned as it is.
    """
    if b_solver is None:
        return gradient
    info = gradient_info(gradient)
    name = getattr(info.function, "__name__", repr(info.function))
    if "b_solver" in bound_settings(gradient):
        raise ValueError(
            f"b_solver is given twice: bound to the gradient {name!r} and as an argument. Leave "
            "out one of them."
        )
    parameters = inspect.signature(info.function).parameters.values()
    if any(p.name == "b_solver" or p.kind is p.VAR_KEYWORD for p in parameters):
        return partial(gradient, b_solver=b_solver)
    if any(info.function is row.function for row in GRADIENTS.values()):
        return gradient
    raise ValueError(
        f"b_solver has no effect on the gradient {name!r}, which has no such parameter. Give the "
        "function a keyword argument b_solver, or leave b_solver out."
    )
