"""A batch of maps, each sample its own, as arguments of one compiled solver.

Tests share these few compilations: what differs between them is data, not code.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Maps(NamedTuple):
    """z -> A z + b of each sample, or tanh of it.

    Attributes:
        a: `[B, D, D]`.
        b: `[B, D]`.
        bounded: `[B]` bool, where the map is tanh(A z + b).
    """

    a: np.ndarray
    b: np.ndarray
    bounded: np.ndarray

    def __call__(self, z):
        image = jnp.einsum("bij,bj->bi", self.a, z, precision="highest") + self.b
        return jnp.where(self.bounded[:, None], jnp.tanh(image), image)

    def only(self, i):
        """Sample `i` as a batch of one."""
        return jax.tree.map(lambda leaf: leaf[i : i + 1], self)


def stack(samples, dtype=np.float64):
    """`Maps` of samples `(A, b)` or `(A, b, bounded)`."""
    samples = [(*sample, False)[:3] for sample in samples]
    a, b, bounded = (np.stack([np.asarray(s[i]) for s in samples]) for i in range(3))
    return Maps(a.astype(dtype), b.astype(dtype), bounded)


@functools.cache
def compiled(solver, **settings):
    """`(maps, z0, step_budget) -> Solution`, compiled once for each shape and type."""
    return jax.jit(lambda maps, z0, budget: solver(maps, z0, step_budget=budget, **settings))


SIZE = 6


def mixed_batch():
    """Easy, hard and hopeless maps of `SIZE` dimensions in one batch: `{name: sample}`, starts."""
    rng = np.random.default_rng(3)

    def general(radius):
        a = rng.normal(size=(SIZE, SIZE))
        return a * radius / abs(np.linalg.eigvals(a)).max()

    def shift():
        return rng.normal(size=SIZE)

    solved = general(0.5), shift()
    samples = {
        "one step": (np.zeros((SIZE, SIZE)), np.zeros(SIZE)),
        "two steps": (np.outer([1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]), shift()),
        "contraction": (general(0.5), shift()),
        "slow": (np.diag(np.linspace(0.5, 0.99, SIZE)), shift()),
        "rotation": (np.kron(np.eye(SIZE // 2), [[0, -1], [1, 0]]), shift()),
        "tanh": (general(1.5), shift(), True),
        "steep tanh": (general(4.0), shift(), True),
        "no fixed point": (np.eye(SIZE), shift()),
        "radius 1000": (general(1e3), shift()),
        "overflows": (1e200 * general(1.0), shift()),
        "starts solved": solved,
    }
    starts = np.zeros((len(samples), SIZE))
    starts[0] = 1
    starts[-1] = np.linalg.solve(np.eye(SIZE) - solved[0], solved[1])
    return samples, starts
