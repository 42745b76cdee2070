"""Training and evaluation: `train_and_evaluate(config, workdir)`, `evaluate(config, workdir)`."""

from mdeq_jax.training.loop import Interrupted, evaluate, train_and_evaluate

__all__ = ["Interrupted", "evaluate", "train_and_evaluate"]
