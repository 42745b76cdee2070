"""Training and evaluation: `train_and_evaluate(config, workdir)`, `evaluate(config, workdir)`."""

from mdeq_jax.training.checkpoint import CheckpointError
from mdeq_jax.training.evaluation import evaluate
from mdeq_jax.training.interrupt import Interrupted
from mdeq_jax.training.loop import TrainingDiverged, train_and_evaluate
from mdeq_jax.training.predict import predict_classes
from mdeq_jax.training.predict_segmentation import (
    describe_prediction,
    predict_folder,
    save_predictions,
)

__all__ = [
    "CheckpointError",
    "Interrupted",
    "TrainingDiverged",
    "describe_prediction",
    "evaluate",
    "predict_classes",
    "predict_folder",
    "save_predictions",
    "train_and_evaluate",
]
