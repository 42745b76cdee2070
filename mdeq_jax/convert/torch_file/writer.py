"""Writes a file that PyTorch loads. No other module uses torch."""

import os

import numpy as np


def write_torch_file(path: str | os.PathLike, state_dict: dict[str, np.ndarray]) -> None:
    """Saves a state dict as `torch.save` does.

    Args:
        path: of the file; its folder is created if missing.
        state_dict: from `export_state_dict`.

    Raises:
        ModuleNotFoundError: torch is not installed.
        IsADirectoryError: `path` is a folder.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Writing a PyTorch file needs torch, which is not installed: pip install torch (the "
            "CPU build is enough). Nothing else in mdeq_jax needs it."
        ) from None
    if os.path.isdir(path):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder: name a file to write.")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    torch.save({name: torch.from_numpy(array) for name, array in state_dict.items()}, path)
