"""Multiscale deep equilibrium models in JAX and Flax."""
