"""What training and evaluation begin with: the data, and a config that fits them."""

from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.data import Dataset, load_dataset
from mdeq_jax.models import check_model
from mdeq_jax.tasks import Task, build_task


def prepare(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Task, Dataset]:
    """Reads the data, and completes the config with what they decide.

    Args:
        config: the whole config.
        workdir: work directory.

    Raises:
        FileNotFoundError: there are no data.
        ValueError: settings that do not fit each other, the data or the work directory. Those that
            have nothing to do with the data are refused before these are read.
    """
    task = build_task(config)
    check_model(config)
    dataset = load_dataset(config.data)
    config = task.complete(config, dataset)
    task = build_task(config)
    task.check_data(dataset)
    dataset.check_workdir(workdir)
    return config, task, dataset
