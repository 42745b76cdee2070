"""Measurements that a user can repeat."""

from mdeq_jax.runtime.compilation import choose_convolutions, choose_short_loops

# As `choose_flags` does, except for CUDA graphs, which `benchmarks.gpu` turns on and off.
choose_convolutions()
choose_short_loops()
