"""Files that are not of `torch.save`: safetensors, which is read, and others, which are named."""

import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from mdeq_jax.convert.errors import WeightsFileError

_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
# How a file begins -> its kind, and what to do.
_SIGNATURES = {
    b"\x1f\x8b": ("gzip-compressed", "unpack it with `gunzip` (or `tar xzf`, if it is a .tar.gz)"),
    b"BZh": ("bzip2-compressed", "unpack it with `bunzip2` (or `tar xjf`, if it is a .tar.bz2)"),
    b"\xfd7zXZ\0": ("xz-compressed", "unpack it with `unxz` (or `tar xJf`, if it is a .tar.xz)"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it with `unzstd`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it with `7z x`"),
    b"Rar!": ("a RAR archive", "unpack it with `unrar x`"),
    b"\x89HDF": ("an HDF5 file, as Keras writes", "save `model.state_dict()` with torch instead"),
    b"\x93NUMPY": ("a NumPy array", "save `model.state_dict()` with torch instead"),
}
_TAR_MAGIC = slice(257, 262)


def is_safetensors(head: bytes, file_size: int) -> bool:
    """Whether a file begins as safetensors: the header's length, then a JSON object."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return 2 <= struct.unpack("<Q", head[:8])[0] <= file_size - 8


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Reads a safetensors file with the `safetensors` package.

    Args:
        data: the whole file.

    Returns:
        {name: array}.

    Raises:
        WeightsFileError: the file is damaged, has a type that no weights here have, or the package
            is missing.
    """
    try:
        import safetensors
    except ImportError:
        raise WeightsFileError(
            "this is a safetensors file, which the package safetensors reads: "
            'pip install "mdeq_jax[train]"'
        ) from None
    try:
        entries = safetensors.deserialize(data)
    except Exception as error:
        raise WeightsFileError(f"a damaged safetensors file ({error}): download it again") from None
    unknown = sorted({entry["dtype"] for _, entry in entries} - _SAFETENSORS_DTYPES.keys())
    if unknown:
        raise WeightsFileError(
            f"the safetensors file has tensors of type {', '.join(unknown)}, but only "
            f"{', '.join(_SAFETENSORS_DTYPES)} are read"
        )
    return {
        name: np.frombuffer(bytearray(entry["data"]), _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries
    }


def refuse_other_formats(head: bytes) -> None:
    """Raises WeightsFileError with the name of the format and the remedy, for known formats.

    Args:
        head: the first 512 bytes of a file.
    """
    for signature, (kind, remedy) in _SIGNATURES.items():
        if head.startswith(signature):
            raise WeightsFileError(f"not a file that torch.save wrote, but {kind}: {remedy}")
    if head[_TAR_MAGIC] == b"ustar":
        raise WeightsFileError(
            "not a file that torch.save wrote, but a tar archive: unpack it with `tar xf`"
        )


def refuse_folder(path: str | os.PathLike) -> None:
    """Raises WeightsFileError, with the remedy, if a path is a folder."""
    folder = Path(path)
    if not folder.is_dir():
        return
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        raise WeightsFileError(
            f"{folder}: a folder of torch.distributed.checkpoint. Make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE"
        )
    if (folder / "data.pkl").is_file():
        raise WeightsFileError(
            f"{folder}: the unpacked content of a torch.save file. Give the file itself, or pack "
            f"the folder again: zip -0 -r FILE {folder.name} (from the folder that holds it)."
        )
    if shards := sorted(folder.glob("*.index.json")):
        raise WeightsFileError(
            f"{folder}: its weights are in several files ({shards[0].name} lists them). Load them "
            "with torch, and save `model.state_dict()` as one file."
        )
    inside = [p.name for p in sorted(folder.iterdir()) if p.suffix in _WEIGHT_SUFFIXES]
    holds = f" It holds {', '.join(inside[:5])}." if inside else ""
    raise WeightsFileError(f"{folder}: a folder. Name a file of weights.{holds}")


_WEIGHT_SUFFIXES = (".pkl", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
