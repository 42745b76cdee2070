"""A batch of maps, each sample its own, as arguments of one compiled solver.

Tests share these few compilations: what differs between them is data, not code.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KINDS = {
    "affine": lambda y: y,
    "tanh": jnp.tanh,
    "plain cosine": jnp.cos,
    "cosine": lambda y: 0.5 * jnp.cos(y) + 1,
    "square": lambda y: y**2 + 3,  # no fixed point, and blows up
    "breaks": lambda y: jnp.where(jnp.abs(y) > 0.5, jnp.nan, 0.2 * y + 0.6),
}


class Maps(NamedTuple):
    """z -> h(A z + b) of each sample, h one of `KINDS`.

    Attributes:
        a: `[B, D, D]`.
        b: `[B, D]`.
        kind: `[B]` place in `KINDS`.
    """

    a: np.ndarray
    b: np.ndarray
    kind: np.ndarray

    def __call__(self, z):
        y = jnp.einsum("bij,bj->bi", self.a, z, precision="highest") + self.b
        kind = self.kind[:, None]
        return jnp.select([kind == i for i in range(len(KINDS))], [h(y) for h in KINDS.values()])

    def only(self, i):
        """Sample `i` as a batch of one."""
        return jax.tree.map(lambda leaf: leaf[i : i + 1], self)


def stack(samples, dtype=np.float64):
    """`Maps` of samples `(A, b)` or `(A, b, kind)`."""
    samples = [(*sample, "affine")[:3] for sample in samples]
    a, b = (np.stack([np.asarray(s[i], dtype) for s in samples]) for i in range(2))
    return Maps(a, b, np.array([list(KINDS).index(s[2]) for s in samples]))


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

    eye, none = np.eye(SIZE), np.zeros(SIZE)
    solved = general(0.5), shift()
    samples = {
        "one step": (0 * eye, none),
        "two steps": (np.outer(eye[0], eye[1]), shift()),
        "contraction": (general(0.5), shift()),
        "slow": (np.diag(np.linspace(0.5, 0.99, SIZE)), shift()),
        "rotation": (np.kron(np.eye(SIZE // 2), [[0, -1], [1, 0]]), shift()),
        "cosine": (eye, none, "cosine"),
        "tanh": (general(1.5), shift(), "tanh"),
        "steep tanh": (general(4.0), shift(), "tanh"),
        "no fixed point": (eye, shift()),
        "radius 1000": (general(1e3), shift()),
        "blows up": (eye, none, "square"),
        "turns NaN": (eye, none, "breaks"),
        "overflows": (1e200 * general(1.0), shift()),
        "starts at zero, solved": (0.3 * eye, none),
        "starts solved": solved,
    }
    starts = np.zeros((len(samples), SIZE))
    starts[0] = 1
    starts[-1] = np.linalg.solve(eye - solved[0], solved[1])
    return samples, starts
