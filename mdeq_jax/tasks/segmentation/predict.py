"""Segmented pictures: of an evaluation split, of any folder, of a video's frames."""

import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from mdeq_jax.data import IGNORE_LABEL, Dataset, load_dataset
from mdeq_jax.data.vision.frames import Frame, Frames, read_frames
from mdeq_jax.tasks.file_names import file_name
from mdeq_jax.tasks.segmentation.confusion import scores
from mdeq_jax.tasks.segmentation.many import segment_many
from mdeq_jax.tasks.segmentation.pictures import Pictures
from mdeq_jax.tasks.segmentation.segmenter import Prediction, Segmenter, denormalized
from mdeq_jax.tasks.task import Task
from mdeq_jax.tree import PyTree
from mdeq_jax.viz.segmentation import Row

COMPARED = 10  # frames that are solved from zero too, to measure what the warm start saves
SHEET_ROWS = 4
COMPARISON = (
    "nfe_warm",
    "nfe_from_zero",
    "nfe_warm_to_same",
    "rel_residual_warm",
    "rel_residual_from_zero",
)
COLUMNS = ("file", "nfe", "rel_residual", "converged", "warm_start", "nfe_from_zero")


def save_pictures(task: Task, segmenter: Segmenter, folder: str | Path) -> dict[str, float]:
    """Segments the evaluation split and writes it as pictures, each in its own size.

    It writes into `folder`:

    - `label_ids/NAME_pred_labelIds.png`, 8-bit grey, the data set's own label ids, as the
      Cityscapes server takes them;
    - `color/NAME_pred_color.png`, in the data set's own colours;
    - `overlay/NAME_pred_overlay.png`;
    - `contact_sheet.png`.

    Runs on one device.

    Args:
        task: of the config.
        segmenter: the trained network; its config names the data set.
        folder: made if missing.

    Returns:
        "eval/NAME" for the numbers of `scores`, and "eval/examples", "eval/nfe".

    Raises:
        FileNotFoundError: there is no data.
        ValueError: the data set does not fit the network.
    """
    config = segmenter.trained.config
    data = config.data.copy_and_resolve_references()
    with data.unlocked():
        data.eval_image_size = None  # pictures in their own size
    dataset = load_dataset(data)
    task.check_data(dataset)
    pictures, classes = Pictures(folder, segmenter.classes), len(segmenter.classes)
    confusion, nfe = np.zeros((classes, classes), np.int64), []
    shown = set(np.linspace(0, dataset.num_eval - 1, SHEET_ROWS).astype(int).tolist())
    steps = segment_many(task, segmenter, _examples(dataset), dataset.num_eval)
    bar = tqdm(steps, total=dataset.num_eval, unit="image", dynamic_ncols=True, disable=None)
    for (index, image, truth), prediction in bar:
        name = pictures.write(file_name(dataset.eval, index), image, prediction.classes)
        counted = truth != IGNORE_LABEL
        truths, predictions = truth[counted], prediction.classes[counted]
        cells = np.bincount(truths * classes + predictions, minlength=classes**2)
        confusion += cells.reshape(classes, classes)
        nfe.append(prediction.nfe)
        if index in shown:
            caption = f"{100 * np.mean(predictions == truths):.1f} % right"
            pictures.show(_row(segmenter, name, image, prediction, caption, truth))
    metrics = scores(confusion, tuple(c.name for c in segmenter.classes))
    pictures.close(
        f"{config.name}, step {segmenter.trained.step:,}: mIoU {100 * metrics['miou']:.1f} %, "
        f"pixel accuracy {100 * metrics['pixel_accuracy']:.1f} %"
    )
    print(f"Wrote {folder}: contact_sheet.png, label_ids/, color/, overlay/.")
    return {
        **{f"eval/{name}": value for name, value in metrics.items()},
        "eval/examples": len(nfe),
        "eval/nfe": float(np.mean(nfe)),
    }


def _examples(dataset: Dataset) -> Iterator[tuple[tuple[int, np.ndarray, np.ndarray], np.ndarray]]:
    """Number, image and label of each readable evaluation example, and the image uint8 `[H, W, 3]`.

    The label is `[H, W]`.
    """
    for index in range(dataset.num_eval):
        batch, skipped = dataset.eval.make_batch(np.array([index]), (0, 0))
        if not skipped:
            image = denormalized(batch["image"][0])
            yield (index, image, batch["label"][0]), image


def predict_folder(
    task: Task, segmenter: Segmenter, source: str | Path, out_dir: str | Path
) -> dict[str, float]:
    """Segments the pictures of a folder (and its subfolders), or the frames of a video.

    They are taken in the order of their names. With `eval.warm_start` each solve starts from the
    equilibrium of the picture before, if that has the same size. This is meant for the frames of
    one video, at one scale, without mirroring and windows. The first `COMPARED` of those are solved
    from zero as well, to show the saving. With `eval.continuous_batching="on"`, or without
    `eval.warm_start`, every picture starts from zero; see `segment_many`.

    With `data.on_error="skip"` damaged pictures are reported and left out. Writes the files of
    `save_pictures`, and `predictions.csv` (`COLUMNS`).

    Args:
        task: of the config.
        segmenter: the trained network; the data themselves are not needed.
        source: a folder of JPEG and PNG files, or a video that OpenCV can read.
        out_dir: made if missing.

    Returns:
        "images", "nfe" (mean), and of the frames solved both ways "compared", "nfe_warm",
        "nfe_from_zero", "rel_residual_warm", "rel_residual_from_zero" and "nfe_warm_to_same", to
        the residual that the solve from zero ended with (means; NaN without any).

    Raises:
        FileNotFoundError: there is no such folder, picture or video.
        ValueError: a picture cannot be read.
    """
    config = segmenter.trained.config
    frames = read_frames(source, config.data.on_error)
    pictures = Pictures(out_dir, segmenter.classes)
    shown = set(np.linspace(0, frames.num_frames - 1, SHEET_ROWS).astype(int).tolist())
    warm = config.eval.warm_start and segmenter.settings.single_pass
    warm = warm and config.eval.continuous_batching != "on"
    if config.eval.warm_start and segmenter.solves and not segmenter.settings.single_pass:
        logging.warning(
            "Every picture is solved from zero: eval.warm_start takes one scale, without "
            "eval.flip and eval.window."
        )
    nfe, compared = [], []
    with (Path(out_dir) / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        if warm:
            steps = predict_all(segmenter, frames.frames)
        else:
            steps = _from_zero(task, segmenter, frames)
        bar = tqdm(steps, total=frames.num_frames, unit="image", dynamic_ncols=True, disable=None)
        for index, (frame, prediction, start, cold) in enumerate(bar):
            name = pictures.write(frame.name, frame.image, prediction.classes)
            writer.writerow(_columns(frame.name, prediction, start, cold))
            nfe.append(prediction.nfe)
            if cold is not None:
                compared.append(_compare(prediction, cold))
            if index in shown:
                caption = f"NFE {prediction.nfe}{'' if start is None else ', warm start'}"
                pictures.show(_row(segmenter, name, frame.image, prediction, caption, start=start))
    if not nfe:
        raise ValueError(f"{source}: none of its {frames.num_frames} pictures can be read.")
    pictures.close(f"{config.name}, step {segmenter.trained.step:,}: {source}")
    return {
        "images": len(nfe),
        "nfe": float(np.mean(nfe)),
        "compared": len(compared),
        **{name: _mean([row[name] for row in compared]) for name in COMPARISON},
    }


def _columns(
    name: str, prediction: Prediction, start: PyTree | None, cold: Prediction | None
) -> tuple:
    """A row of `predictions.csv`."""
    return (
        name,
        prediction.nfe,
        f"{prediction.rel_residual:.3e}",
        int(prediction.converged),
        int(start is not None),
        "" if cold is None else cold.nfe,
    )


def _compare(prediction: Prediction, cold: Prediction) -> dict[str, float]:
    """The numbers of `COMPARISON` for a prediction and the same one from zero."""
    return {
        "nfe_warm": prediction.nfe,
        "nfe_from_zero": cold.nfe,
        "nfe_warm_to_same": prediction.nfe_to(cold.rel_residual),
        "rel_residual_warm": prediction.rel_residual,
        "rel_residual_from_zero": cold.rel_residual,
    }


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def predict_all(
    segmenter: Callable, frames: Iterator[Frame]
) -> Iterator[tuple[Frame, Prediction, tuple | None, Prediction | None]]:
    """Segments pictures one after the other, each from the equilibrium of the one before.

    Pictures of another size than the one before start from zero.

    Args:
        segmenter: a `Segmenter`.
        frames: what to segment.

    Yields:
        The picture, its prediction, what that started from (None: zero), and for the first
        `COMPARED` that did not start from zero the prediction from there (else None).
    """
    z_star, size, compared = None, None, itertools.count()
    for frame in frames:
        start = z_star if frame.image.shape == size else None
        prediction, z_star = segmenter(frame.image, start)
        size, cold = frame.image.shape, None
        if start is not None and next(compared) < COMPARED:
            cold, _ = segmenter(frame.image)
        yield frame, prediction, start, cold


def _from_zero(task: Task, segmenter: Segmenter, frames: Frames) -> Iterator[tuple]:
    """The same for pictures that all start from zero."""
    items = ((frame, frame.image) for frame in frames.frames)
    for frame, prediction in segment_many(task, segmenter, items, frames.num_frames):
        yield frame, prediction, None, None


def _row(
    segmenter, name, image, prediction: Prediction, caption: str, truth=None, start=None
) -> Row:
    residual = segmenter.residual(image, start)
    return Row(name, image, truth, prediction.classes, prediction.confidence, residual, caption)


def describe_prediction(summary: dict[str, float]) -> str:
    """The result of `predict_folder` in a line or two."""
    text = f"{summary['images']:,} images, NFE {summary['nfe']:.1f} an image."
    if summary["compared"]:
        count = summary["compared"]
        frames = "1 frame was" if count == 1 else f"{count:,} frames were"
        saved = 1 - summary["nfe_warm_to_same"] / summary["nfe_from_zero"]
        text += (
            f"\n{frames} solved both ways. From zero: NFE {summary['nfe_from_zero']:.1f}, residual "
            f"{summary['rel_residual_from_zero']:.1e}. Warm start: NFE {summary['nfe_warm']:.1f}, "
            f"residual {summary['rel_residual_warm']:.1e}; it reached the residual from zero after "
            f"{summary['nfe_warm_to_same']:.1f} evaluations, {100 * saved:.0f} % fewer."
        )
    return text
