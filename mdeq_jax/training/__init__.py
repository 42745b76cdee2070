"""Training and evaluation: `train_and_evaluate(config, workdir)`."""

from mdeq_jax.training.loop import Interrupted, train_and_evaluate

__all__ = ["Interrupted", "train_and_evaluate"]
