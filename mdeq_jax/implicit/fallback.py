"""What takes the place of an adjoint solution that its solver did not find.

Where an equilibrium has hardly been reached, or I - J^T is nearly singular, the iterates of
u = J^T u + g grow long before they get anywhere, and one sample's gradient outweighs its batch's.
A solver that goes by the relative residual |J^T u + g - u| / |J^T u + g| does not mind: large
iterates make it small. What counts here is the residual beside |g|, which is 1 at u = 0.
"""

import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.adjoint import LinearMap
from mdeq_jax.implicit.phantom import series
from mdeq_jax.solvers import Solution, Status
from mdeq_jax.solvers.norms import safe_norm
from mdeq_jax.tree import PyTree, ravel_batch

UNCONVERGED = ("keep", "damped", "cap")
FAILED = 1.0  # residual beside |g| above which a solution is worse than none
DAMPED = {"steps": 5, "tau": 0.5}  # of the sum that replaces it, as in the phantom gradient
CAP = 10.0  # longest u beside |g|


def check_unconverged(unconverged: str) -> None:
    """Refuses an unknown rule.

    Raises:
        ValueError: as said.
    """
    if unconverged not in UNCONVERGED:
        raise ValueError(f"unconverged must be one of {UNCONVERGED}; got {unconverged!r}.")


def fall_back(
    unconverged: str, product: LinearMap, cotangent: PyTree, u: PyTree, solution: Solution
) -> PyTree:
    """`u`, with another solution for the samples whose solve failed.

    These are the samples that did not converge and whose residual is over `FAILED` |g|. Where there
    are none in the batch nothing is computed; a sample's u never depends on another's.

    Args:
        unconverged: "keep": u as it is. "damped": `DAMPED["steps"]` terms of the damped Neumann
            series, for which the whole batch is multiplied. "cap": u, shortened to `CAP` |g|.
        product: u -> J^T u.
        cotangent: g, leaves `[B, ...]`.
        u: what the solver found, like `cotangent`.
        solution: its report.
    """
    if unconverged == "keep":
        return u
    # The array that the solve held, in and out: XLA would keep its parts for the branch beside it.
    flat_g, unravel = ravel_batch(cotangent)
    flat_g = lax.optimization_barrier(flat_g)
    flat_u, size = ravel_batch(u)[0], safe_norm(flat_g)
    failed = (solution.status != Status.CONVERGED) & (solution.residual > FAILED * size)

    def replaced():
        if unconverged == "damped":
            other = ravel_batch(series(product, unravel(flat_g), **DAMPED)[0])[0]
        else:
            length = jnp.maximum(safe_norm(flat_u), jnp.finfo(flat_u.dtype).tiny)
            other = flat_u * jnp.minimum(1, CAP * size / length)[:, None]
        return jnp.where(failed[:, None], other, flat_u)

    return unravel(lax.cond(jnp.any(failed), replaced, lambda: flat_u))
