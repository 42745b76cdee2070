"""Reads, converts and exports PyTorch checkpoints of the original repositories."""

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.mdeq.architectures import KNOWN_ARCHITECTURES, Architecture, recognise
from mdeq_jax.convert.report import inspect_file, summarize
from mdeq_jax.convert.state_dict import (
    Conversion,
    convert,
    convert_state_dict,
    export_state_dict,
)
from mdeq_jax.convert.torch_file.unpickle import (
    StateDict,
    load_torch_file,
    load_torch_object,
    read_state_dict,
)
from mdeq_jax.convert.torch_file.writer import write_torch_file

__all__ = [
    "KNOWN_ARCHITECTURES",
    "Architecture",
    "Conversion",
    "StateDict",
    "WeightsFileError",
    "convert",
    "convert_state_dict",
    "export_state_dict",
    "inspect_file",
    "load_torch_file",
    "load_torch_object",
    "read_state_dict",
    "recognise",
    "summarize",
    "write_torch_file",
]
