"""`config.precision`: what a network computes in."""

import jax.numpy as jnp

# None: the type of input and parameters.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}
