"""Classes of the images of a folder, as a CSV file."""

import csv
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mdeq_jax.data import load_dataset
from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.unlabelled import list_folder, read_for_evaluation
from mdeq_jax.engine.evaluation import load_checkpoint
from mdeq_jax.models import build_model
from mdeq_jax.solvers import Status
from mdeq_jax.tasks.validate import check_data, check_settings

COLUMNS = ("file", "class", "name", "probability", "solver_steps", "rel_residual", "converged")


def predict_classes(
    config, workdir: str | Path, folder: str | Path, output: Path, *, checkpoint: str = "latest"
) -> int:
    """Classifies every image of `folder` and writes one line each to the CSV file `output`.

    With `data.on_error="skip"` damaged images are reported and left out.

    Columns: "file"; "class" and "name" of the likeliest class; its "probability" in [0, 1]; and of
    the equilibrium "solver_steps", "rel_residual" and "converged" (1 or 0). Runs on one device.

    Args:
        config: a config of the network; its data set gives the names of the classes and how
            pixels are normalised.
        workdir: of `train_and_evaluate` or of a converted file.
        folder: of JPEG and PNG files, its subfolders included.
        output: the CSV file.
        checkpoint: "latest", "best", or a step.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: there is no checkpoint, folder or image.
        ValueError: settings that do not fit the checkpoint, or an image that cannot be read.
    """
    check_settings(config)
    model = build_model(config)
    variables, _ = load_checkpoint(config, Path(workdir), model, checkpoint)
    dataset = load_dataset(config.data)
    check_data(config, dataset)
    paths = list_folder(folder)
    batch_size = min(config.eval.batch_size or config.train.batch_size, len(paths))

    @jax.jit
    def predict(images):
        out = model.apply(variables, images)
        solution = out.solution
        return jax.nn.softmax(out.logits), solution.steps, solution.rel_residual, solution.status

    count, examples = 0, _readable(paths, dataset, config.data.on_error)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        while batch := list(islice(examples, batch_size)):
            count += len(batch)
            images = np.stack([image for _, image in batch])
            padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            results = jax.device_get(predict(jnp.asarray(np.pad(images, padding))))
            for (path, _), probabilities, steps, residual, status in zip(batch, *results):
                best = int(np.argmax(probabilities))
                writer.writerow(
                    (
                        path.relative_to(folder),
                        best,
                        dataset.class_names[best],
                        f"{probabilities[best]:.6f}",
                        int(steps),
                        f"{residual:.3e}",
                        int(status == Status.CONVERGED),
                    )
                )
    return count


def _readable(paths, dataset, on_error):
    """Yields path and image; damaged ones are errors, or are skipped."""
    for path in paths:
        try:
            image = read_for_evaluation(path, dataset)
        except ExampleError as error:
            if on_error != "skip":
                raise
            logging.warning("skipped an image: %s", error)
            continue
        yield path, image
