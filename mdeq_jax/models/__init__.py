"""The models, and `build_model`, which makes one from a config."""

from mdeq_jax.models.build import build_model
from mdeq_jax.models.mdeq import MDEQ, MDEQOutput
from mdeq_jax.models.mdeq_cell import CellInput, CellSpec, MDEQCell, apply_cell

__all__ = ["MDEQ", "CellInput", "CellSpec", "MDEQCell", "MDEQOutput", "apply_cell", "build_model"]
