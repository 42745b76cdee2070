"""The DEQ-Transformer of `pydoc_transformer`, trained for longer.

Thirteen passes over the text instead of three; the equilibrium trains in the last fifth.

    python train.py --config=configs/pydoc_transformer_long.py
"""

from mdeq_jax.configs import pydoc_transformer


def get_config():
    config = pydoc_transformer.get_config().unlock()
    config.name = "pydoc_transformer_long"
    config.train.epochs = 13
    config.train.pretrain_steps = 4_200
    config.eval.every_epochs = 4.0
    config.checkpoint.every_epochs = 4.0
    return config.lock()
