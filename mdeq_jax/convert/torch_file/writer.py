"""Writing a file that PyTorch loads. The only place that may use torch, if it is installed."""

import os

import numpy as np


def write_torch_file(path: str | os.PathLike, state_dict: dict[str, np.ndarray]) -> None:
    """Saves a state dict as `torch.save` does.

    Args:
        path: of the file; its folder is made if missing.
        state_dict: of `export_state_dict`.

    Raises:
        ModuleNotFoundError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Writing a PyTorch file needs torch, which is not installed: pip install torch (the "
            "CPU build will do). Nothing else in mdeq_jax needs it."
        ) from None
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    torch.save({name: torch.from_numpy(array) for name, array in state_dict.items()}, path)
