"""Figures, drawn from arrays alone."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.viz", ("matplotlib",))
