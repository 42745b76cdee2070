"""Differentiating through an equilibrium without going back through its solver."""

from mdeq_jax.implicit.equilibrium import GRADIENTS, equilibrium
from mdeq_jax.implicit.ift import BackwardStats, ift, solve_adjoint
from mdeq_jax.implicit.jacobian import SpectralRadius, jacobian_loss, spectral_radius
from mdeq_jax.implicit.phantom import neumann, one_step, phantom

__all__ = [
    "GRADIENTS",
    "BackwardStats",
    "SpectralRadius",
    "equilibrium",
    "ift",
    "jacobian_loss",
    "neumann",
    "one_step",
    "phantom",
    "solve_adjoint",
    "spectral_radius",
]
