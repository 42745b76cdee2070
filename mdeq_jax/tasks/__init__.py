"""What a model is trained for: a loss to differentiate, figures to report, an inference.

A figure is a sum over examples (or pixels), so that padding never counts, batches of any size add
up, and devices and hosts add up; `Task.summarize` makes numbers to read of the sums.
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.tasks", ("cv2", "matplotlib", "tqdm"))

from mdeq_jax.tasks.classification.task import classification
from mdeq_jax.tasks.segmentation.task import segmentation
from mdeq_jax.tasks.task import Task
from mdeq_jax.tasks.validate import check_settings

__all__ = ["TASKS", "Task", "build_task"]

TASKS = {"mdeq_classifier": classification, "mdeq_segmenter": segmentation}


def build_task(config) -> Task:
    """The task of `config.model.name`.

    Raises:
        ValueError: there is none yet, or a setting that cannot work or that it has no use for.
    """
    if config.model.name not in TASKS:
        raise ValueError(
            f"There is no training task for model.name={config.model.name!r} yet; "
            f"there is one for {sorted(TASKS)}."
        )
    check_settings(config)
    return TASKS[config.model.name](config)
