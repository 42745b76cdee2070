"""Training and evaluation: `train_and_evaluate(config, workdir)`, `evaluate(config, workdir)`."""

from mdeq_jax.engine.checkpoint import CheckpointError
from mdeq_jax.engine.evaluation import evaluate
from mdeq_jax.engine.loop import TrainingDiverged, train_and_evaluate
from mdeq_jax.runtime.interrupt import Interrupted
from mdeq_jax.tasks.classification.predict import predict_classes
from mdeq_jax.tasks.segmentation.predict import (
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
