"""PyTorch checkpoints of the original repositories, read without PyTorch."""

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.unpickle import load_torch_file, load_torch_object

__all__ = ["WeightsFileError", "load_torch_file", "load_torch_object"]
