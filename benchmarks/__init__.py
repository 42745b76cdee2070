"""Measurements that a user can repeat."""

from mdeq_jax.training.compilation import choose_convolutions

choose_convolutions()  # as `train.py` and `eval.py` do
