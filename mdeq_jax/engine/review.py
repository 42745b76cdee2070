"""What the model of a work directory gets wrong."""

from pathlib import Path

from mdeq_jax.engine.evaluation import load_trained
from mdeq_jax.engine.prepare import prepare
from mdeq_jax.engine.saved_config import read_config
from mdeq_jax.viz.review import Review


def review(
    workdir: str | Path,
    *,
    checkpoint: str = "latest",
    max_examples: int = 1000,
    data_dir: str | None = None,
) -> Review:
    """Evaluates a checkpoint on examples of the evaluation split, on one device.

    Args:
        workdir: work directory of `train_and_evaluate`.
        checkpoint: "latest", "best", or a step.
        max_examples: how many to evaluate at most; see `Task.review`.
        data_dir: where the data are; None: where the run read them.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no data.
        ValueError: settings that do not fit each other, the data or the checkpoint.
    """
    workdir = Path(workdir).expanduser()
    config = read_config(workdir)
    if data_dir is not None:
        config.data.data_dir = data_dir
    trained = load_trained(config, workdir, checkpoint)
    config, task, dataset = prepare(trained.config, workdir)
    return task.review(trained._replace(config=config), dataset, max_examples)
