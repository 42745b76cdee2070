"""Which hardware the code is for, where one way of computing is not the fastest everywhere."""

import jax


def on_cpu() -> bool:
    """Whether programs are compiled for CPUs; decided while JAX traces."""
    return jax.default_backend() == "cpu"
