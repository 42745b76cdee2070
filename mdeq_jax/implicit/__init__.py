"""Differentiating through an equilibrium without going back through its solver."""

from mdeq_jax.implicit.adjoint import BackwardStats, solve_adjoint, solve_tangent
from mdeq_jax.implicit.build import build_gradient
from mdeq_jax.implicit.deep_supervision import (
    correction_weights,
    fixed_point_correction,
    supervised_states,
)
from mdeq_jax.implicit.equilibrium import equilibrium
from mdeq_jax.implicit.gradients import GRADIENTS, GradientInfo, gradient_info
from mdeq_jax.implicit.ift import ift
from mdeq_jax.implicit.jacobian import SpectralRadius, jacobian_loss, spectral_radius
from mdeq_jax.implicit.optional_jacobian import optional_jacobian_loss
from mdeq_jax.implicit.phantom import neumann, one_step, phantom
from mdeq_jax.implicit.problem import Cell, FixedPointProblem
from mdeq_jax.implicit.reversible import reversible
from mdeq_jax.implicit.shine import shine
from mdeq_jax.implicit.unroll import unroll

__all__ = [
    "GRADIENTS",
    "BackwardStats",
    "Cell",
    "FixedPointProblem",
    "GradientInfo",
    "SpectralRadius",
    "build_gradient",
    "correction_weights",
    "equilibrium",
    "fixed_point_correction",
    "gradient_info",
    "ift",
    "jacobian_loss",
    "neumann",
    "one_step",
    "optional_jacobian_loss",
    "phantom",
    "reversible",
    "shine",
    "solve_adjoint",
    "solve_tangent",
    "spectral_radius",
    "supervised_states",
    "unroll",
]
