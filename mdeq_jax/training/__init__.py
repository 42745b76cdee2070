"""Training and evaluation: `train_and_evaluate(config, workdir)`, `evaluate(config, workdir)`."""

from mdeq_jax.engine.checkpoint import CheckpointError
from mdeq_jax.engine.evaluation import evaluate, generate, predict, save_predictions
from mdeq_jax.engine.loop import train_and_evaluate
from mdeq_jax.engine.run import TrainingDiverged
from mdeq_jax.runtime.interrupt import Interrupted

__all__ = [
    "CheckpointError",
    "Interrupted",
    "TrainingDiverged",
    "evaluate",
    "generate",
    "predict",
    "save_predictions",
    "train_and_evaluate",
]
