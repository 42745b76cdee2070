"""Classes of the images in a folder, as a CSV file."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from absl import logging

from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.preprocessing import Preprocessing
from mdeq_jax.data.vision.unlabelled import list_folder, read_for_evaluation
from mdeq_jax.models import ModelOutput
from mdeq_jax.solvers import Solution, Status
from mdeq_jax.tasks.batched_inference import BatchedInference, in_order
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.task import Task

COLUMNS = ("file", "class", "name", "probability", "solver_steps", "rel_residual", "converged")


def predict_classes(
    task: Task,
    trained: TrainedModel,
    preprocessing: Preprocessing,
    folder: str | Path,
    output: Path,
) -> int:
    """Classifies every image of `folder` and writes one line each to the CSV file `output`.

    With `data.on_error="skip"` damaged images are reported and left out. Runs on one device.

    The columns are "file"; "class" and "name" of the likeliest class; its "probability" in [0, 1];
    and of the equilibrium "solver_steps", "rel_residual" and "converged" (1 or 0), which are empty
    for a model without one.

    Args:
        task: of the config.
        trained: the model.
        preprocessing: of the images that it was trained on, with the names of the classes.
        folder: of JPEG and PNG files, its subfolders included.
        output: the CSV file.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: there is no folder or no image.
        ValueError: an image cannot be read.
    """
    config = trained.config
    paths = list_folder(folder)
    names, examples = [], _readable(paths, preprocessing, config.data.on_error)
    batch_size = min(config.eval.batch_size or config.train.batch_size, len(paths))
    batches = _batches(examples, batch_size, names)
    unfinished = output.with_suffix(".csv.tmp")
    try:  # an error leaves the file of an earlier call as it is
        with unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            results = in_order(_results(task, trained, batches, batch_size, len(paths)))
            for i, (probabilities, solve) in enumerate(results):
                best = int(np.argmax(probabilities))
                writer.writerow(
                    (
                        names[i].relative_to(folder),
                        best,
                        preprocessing.class_names[best],
                        f"{probabilities[best]:.6f}",
                        *_columns(solve),
                    )
                )
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(names)


def _batches(
    examples: Iterator[tuple[Path, np.ndarray]], batch_size: int, names: list[Path]
) -> Iterator[dict]:
    """Padded batches; the paths of their images are added to `names`."""
    while batch := list(islice(examples, batch_size)):
        index = len(names) + np.arange(batch_size)
        names.extend(path for path, _ in batch)
        images = np.stack([image for _, image in batch])
        padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
        mask = np.arange(batch_size) < len(batch)
        yield {
            "image": np.pad(images, padding),
            "mask": mask.astype(np.float32),
            "index": index.astype(np.int32),
        }


def _results(
    task: Task, trained: TrainedModel, batches: Iterator[dict], batch_size: int, count: int
) -> Iterator[dict[int, tuple]]:
    """Probabilities and solve of the images that are finished, by their number."""

    def summary(out: ModelOutput):
        return jax.nn.softmax(out.logits), _of_the_solve(out.solution)

    infer = BatchedInference(task, trained, summary, batch_size=batch_size, num_examples=count)
    yield from map(infer, batches)
    yield infer.finish()


def _of_the_solve(solution: Solution | None) -> tuple:
    """Steps, residual and status of each sample; empty without an equilibrium."""
    if solution is None:
        return ()
    return solution.steps, solution.rel_residual, solution.status


def _columns(solve: tuple) -> tuple:
    if not solve:
        return "", "", ""
    steps, residual, status = solve
    return int(steps), f"{residual:.3e}", int(status == Status.CONVERGED)


def _readable(
    paths: list[Path], preprocessing: Preprocessing, on_error: str
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields path and image; damaged ones are errors, or are skipped."""
    for path in paths:
        try:
            image = read_for_evaluation(path, preprocessing)
        except ExampleError as error:
            if on_error != "skip":
                raise
            logging.warning("skipped an image: %s", error)
            continue
        yield path, image
