"""The tasks of models, one row each in `TASKS`, and `build_task`."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.tasks", ("cv2", "matplotlib", "ml_collections", "tqdm"))

from ml_collections import ConfigDict

from mdeq_jax.models import MODELS
from mdeq_jax.tasks.classification.task import Classification
from mdeq_jax.tasks.language.task import LanguageModel
from mdeq_jax.tasks.metric import Metric
from mdeq_jax.tasks.requests import GenerationRequest, TrainedModel, read_prompts
from mdeq_jax.tasks.segmentation.task import Segmentation
from mdeq_jax.tasks.task import Task

__all__ = [
    "TASKS",
    "GenerationRequest",
    "Metric",
    "Task",
    "TrainedModel",
    "build_task",
    "read_prompts",
    "task_type",
]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "language_model": LanguageModel,
}


def task_type(config: ConfigDict) -> type[Task]:
    """The task that `config.task` names; if that is unset, the usual one of the model's family.

    Raises:
        ValueError: there is no such task or family.
    """
    if not config.task and config.model.name not in MODELS:
        raise ValueError(f"model.name must be one of {sorted(MODELS)}; got {config.model.name!r}.")
    name = config.task or MODELS[config.model.name].task
    if name not in TASKS:
        raise ValueError(f"task must be one of {sorted(TASKS)}; got {name!r}.")
    return TASKS[name]


def build_task(config: ConfigDict) -> Task:
    """The task of a config.

    Raises:
        ValueError: there is none, a setting cannot work, or it belongs to another task.
    """
    chosen = task_type(config)
    for other in TASKS.values():
        for field, unset in other.own_fields.items():
            part, name = field.split(".")
            if field not in chosen.own_fields and config[part][name] != unset:
                raise ValueError(
                    f"{field}={config[part][name]!r} is for {other.name} and has no effect on "
                    f"model.name={config.model.name!r}: leave it at {unset}."
                )
    return chosen(config)
