"""Adjoint equations that are nearly singular: the solver's solution and its replacements.

    python -m benchmarks.nearly_singular

There are 1,000 samples, each with a random matrix J of 48 dimensions for which I - J^T is nearly
singular: J has a real eigenvalue 1 - gap, with |gap| from 1e-4 to 0.5 of both signs, and others
under 0.7. It compares 15 Broyden steps in float32, as in training, with a dense solve in float64.
The table has medians over the samples whose solve did not converge, by their last residual
|J^T u + g - u| / |g|.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging

from mdeq_jax.implicit.adjoint import solve_linear
from mdeq_jax.implicit.fallback import UNCONVERGED, fall_back
from mdeq_jax.solvers import Status, broyden

SIZE, SAMPLES = 48, 1000
EDGES = (0.0, 0.1, 0.25, 0.5, 1.0, 3.0, np.inf)  # of the residual


def matrices(rng) -> np.ndarray:
    """`[SAMPLES, SIZE, SIZE]`."""
    found = []
    for gap in rng.choice([-1, 1], SAMPLES) * 10 ** rng.uniform(-4, np.log10(0.5), SAMPLES):
        others = rng.normal(size=(SIZE, SIZE))
        others *= 0.7 / np.abs(np.linalg.eigvals(others)).max()
        hard = rng.normal(size=SIZE)
        hard /= np.linalg.norm(hard)
        away = np.eye(SIZE) - np.outer(hard, hard)
        found.append(away @ others @ away + (1 - gap) * np.outer(hard, hard))
    return np.stack(found)


def main(argv) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rng = np.random.default_rng(0)
    jacobians, g = matrices(rng), rng.normal(size=(SAMPLES, SIZE))
    exact = np.linalg.solve(np.eye(SIZE) - np.swapaxes(jacobians, 1, 2), g[..., None])[..., 0]
    small = jnp.asarray(jacobians, jnp.float32)

    def product(u):
        return jnp.einsum("bji,bj->bi", small, u)

    @jax.jit
    def solve(g):
        u, solution = solve_linear(product, g, partial(broyden, max_steps=15, tol=1e-3))
        return solution, [fall_back(rule, product, g, u, solution) for rule in UNCONVERGED]

    solution, found = jax.device_get(solve(jnp.asarray(g, jnp.float32)))
    residual = solution.residual / np.linalg.norm(g, axis=1)
    unconverged = solution.status != Status.CONVERGED
    names = " | ".join(f"{rule}: length, cosine, error" for rule in UNCONVERGED)
    print(f"| residual | samples | {names} |\n" + "|---" * (2 + len(UNCONVERGED)) + "|")
    for low, high in pairwise(EDGES):
        here = unconverged & (residual >= low) & (residual < high)
        row = [f"{low:g} to {high:g}", f"{np.sum(here)}"]
        for u in found:
            length, true = np.linalg.norm(u, axis=1), np.linalg.norm(exact, axis=1)
            cosine = np.sum(u * exact, axis=1) / length / true
            error = np.linalg.norm(u - exact, axis=1) / true
            medians = [np.median(v[here]) for v in (length / true, cosine, error)]
            row.append(", ".join(f"{median:.2f}" for median in medians))
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    app.run(main)
