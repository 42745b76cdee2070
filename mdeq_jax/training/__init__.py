"""Training and evaluation: `train_and_evaluate(config, workdir)`, `evaluate(config, workdir)`."""

from mdeq_jax.training.checkpoint import CheckpointError
from mdeq_jax.training.evaluation import evaluate
from mdeq_jax.training.interrupt import Interrupted
from mdeq_jax.training.loop import TrainingDiverged, train_and_evaluate
from mdeq_jax.training.predict import predict_classes

__all__ = [
    "CheckpointError",
    "Interrupted",
    "TrainingDiverged",
    "evaluate",
    "predict_classes",
    "train_and_evaluate",
]
