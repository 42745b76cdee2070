"""Root solvers for f(z) = z: batched, each sample its own stopping rule, inside `jit`."""

from mdeq_jax.solvers.anderson import anderson
from mdeq_jax.solvers.broyden import broyden
from mdeq_jax.solvers.fixed_point_iteration import fixed_point_iteration
from mdeq_jax.solvers.inverse import (
    InverseEstimate,
    inverse_product,
    transposed_inverse_product,
)
from mdeq_jax.solvers.solution import Solution, Status

SOLVERS = {
    "broyden": broyden,
    "anderson": anderson,
    "fixed_point_iteration": fixed_point_iteration,
}

__all__ = [
    "SOLVERS",
    "InverseEstimate",
    "Solution",
    "Status",
    "anderson",
    "broyden",
    "fixed_point_iteration",
    "inverse_product",
    "transposed_inverse_product",
]
