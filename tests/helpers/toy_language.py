"""The smallest language models, on a text with a simple grammar."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.configs import default
from tests.helpers.tiny import override

WORDS = ("the", "cat", "dog", "sees", "a", "bird", "and", "sings", "now")
SIZES = {
    "model.transformer.d_model": 16,
    "model.transformer.d_embed": 16,
    "model.transformer.n_head": 2,
    "model.transformer.d_head": 8,
    "model.transformer.d_inner": 24,
    "model.transformer.n_layer": 3,
    "model.transformer.mem_len": 12,
}
TRELLIS_SIZES = {f"model.trellisnet.{field}": 12 for field in ("ninp", "nhid", "nout")}


def write_text(path: Path) -> None:
    """Writes a text of about 2,600 characters."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 6)) + "." for _ in range(100)]
    path.write_text("\n".join(lines) + "\n")


def toy_config(text: Path, family: str = "deq_transformer", /, **fields) -> ConfigDict:
    """The config of a small language model on a text file, with further fields set."""
    config = default.get_config(family)
    sizes = TRELLIS_SIZES if family == "deq_trellisnet" else SIZES
    settings = {
        **sizes,
        "name": "toy",
        "data.name": "text_file",
        "data.data_dir": str(text),
        "data.segment_length": 8,
        "solver.forward.max_steps": 12,
        "solver.backward.max_steps": 12,
        "train.batch_size": 8,
        "train.epochs": 0.5,
        "train.learning_rate": 1e-2,
        "train.schedule": "constant",
        "eval.batch_size": 4,
        "log.tensorboard": False,
        "log.convergence_plot": False,
        **fields,
    }
    return override(config, settings).lock()
