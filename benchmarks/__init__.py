"""Measurements that a user can repeat."""

from mdeq_jax.runtime.compilation import choose_convolutions, choose_short_loops

choose_convolutions()  # as `train.py` and `eval.py` do
choose_short_loops()
