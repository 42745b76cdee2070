"""The models, and `build_model`, which makes one from a config."""

from mdeq_jax.models.mdeq.build import build_model
from mdeq_jax.models.mdeq.cell import CellInput, CellSpec, MDEQCell, apply_cell
from mdeq_jax.models.mdeq.network import MDEQ, MDEQOutput

__all__ = ["MDEQ", "CellInput", "CellSpec", "MDEQCell", "MDEQOutput", "apply_cell", "build_model"]
