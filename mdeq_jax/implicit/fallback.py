"""Replacements for an adjoint solution that the solver did not find.

If a sample has hardly reached its equilibrium, or I - J^T is nearly singular, the iterates of
u = J^T u + g grow long before they converge. One sample's gradient then outweighs its batch's. A
solver's relative residual |J^T u + g - u| / |J^T u + g| does not show it, because a large u makes
it small. The residual relative to |g| does: it is 1 at u = 0.
"""

import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.adjoint import LinearMap
from mdeq_jax.implicit.phantom import series
from mdeq_jax.solvers import Solution, Status
from mdeq_jax.solvers.norms import safe_norm
from mdeq_jax.tree import PyTree, ravel_batch

UNCONVERGED = ("keep", "damped", "cap")
FAILED = 1.0  # residual relative to |g| from which on u is no better than zero
DAMPED = {"steps": 5, "tau": 0.5}  # the series that replaces u, as in the phantom gradient
CAP = 10.0  # largest norm of u relative to |g|


def check_unconverged(unconverged: str) -> None:
    """Refuses an unknown rule.

    Raises:
        ValueError: lists the rules.
    """
    if unconverged not in UNCONVERGED:
        raise ValueError(f"unconverged must be one of {UNCONVERGED}; got {unconverged!r}.")


def fall_back(
    unconverged: str, product: LinearMap, cotangent: PyTree, u: PyTree, solution: Solution
) -> PyTree:
    """`u`, with a replacement for the samples whose solve failed.

    A solve failed if the sample did not converge and its residual is at least `FAILED` |g|. A batch
    without such a sample costs nothing. A sample's u never depends on another sample.

    Args:
        unconverged: "keep": u as it is. "damped": `DAMPED["steps"]` terms of the damped Neumann
            series, computed for the whole batch. "cap": u, shortened to `CAP` |g|.
        product: u -> J^T u.
        cotangent: g, leaves `[B, ...]`.
        u: the solver's solution, like `cotangent`.
        solution: the solver's report.
    """
    if unconverged == "keep":
        return u
    # Take and return the array that the solve held. XLA would keep its parts as well otherwise.
    flat_g, unravel = ravel_batch(cotangent)
    flat_g = lax.optimization_barrier(flat_g)
    flat_u, size = ravel_batch(u)[0], safe_norm(flat_g)
    failed = (solution.status != Status.CONVERGED) & (solution.residual >= FAILED * size)

    def replaced():
        if unconverged == "damped":
            other = ravel_batch(series(product, unravel(flat_g), **DAMPED)[0])[0]
        else:
            length = jnp.maximum(safe_norm(flat_u), jnp.finfo(flat_u.dtype).tiny)
            other = flat_u * jnp.minimum(1, CAP * size / length)[:, None]
        return jnp.where(failed[:, None], other, flat_u)

    return unravel(lax.cond(jnp.any(failed), replaced, lambda: flat_u))
