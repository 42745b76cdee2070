"""Segmentation of many images from zero: those of one size together, the results in order."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.tasks.batched_inference import BatchedInference, in_order
from mdeq_jax.tasks.segmentation.segmenter import Prediction, Segmenter, normalized, summarize
from mdeq_jax.tasks.stream_settings import why_not
from mdeq_jax.tasks.task import Task

# An image waits for others of its size while at most so many batches of images follow it.
PATIENCE = 4


def segment_many(
    task: Task, segmenter: Segmenter, items: Iterable[tuple[Any, np.ndarray]], num_images: int
) -> Iterator[tuple[Any, Prediction]]:
    """Segments images of any sizes; the predictions are those of `segmenter(image)`, in order.

    With `eval.continuous_batching="on"` those of one size wait until they are a batch, and take
    turns in the slots. Sizes of which there never is a whole batch are taken one at a time. So is
    every image otherwise, because an image that is solved alone waits for no other one.

    Args:
        task: of the config.
        segmenter: the trained network.
        items: anything, and an image uint8 `[H, W, 3]`.
        num_images: how many there are at most.

    Yields:
        What came with the image, and its prediction.
    """
    companions = deque()

    def results():
        queues = {}
        for index, (companion, image) in enumerate(items):
            companions.append(companion)
            if image.shape not in queues:
                queues[image.shape] = _Queue(task, segmenter, image.shape, num_images)
            yield queues[image.shape].add(index, image)
            for queue in queues.values():
                if index - queue.oldest(index) > PATIENCE * queue.batch_size:
                    yield queue.flush()
        for queue in queues.values():
            yield queue.flush()

    for prediction in in_order(results()):
        yield companions.popleft(), prediction


class _Queue:
    """The images of one size.

    Attributes:
        batch_size: how many are given to the network at once.
    """

    def __init__(self, task: Task, segmenter: Segmenter, shape: tuple, num_images: int):
        trained, self._segmenter = segmenter.trained, segmenter
        self.batch_size, self._infer = batch_size_for(task, trained.config, shape), None
        if self.batch_size > 1:
            self._infer = BatchedInference(
                task, trained, summarize, batch_size=self.batch_size, num_examples=num_images
            )
        self._waiting, self._unfinished, self._filled = {}, {}, False

    def oldest(self, otherwise: int) -> int:
        """Number of the first image without a result."""
        return next(iter(self._unfinished), otherwise)

    def add(self, index: int, image: np.ndarray) -> dict[int, Prediction]:
        """Takes an image; returns the predictions of those that are finished."""
        self._waiting[index] = image
        self._unfinished[index] = None
        if len(self._waiting) < self.batch_size:
            return {}
        self._filled = True
        return self._solve_waiting()

    def flush(self) -> dict[int, Prediction]:
        """The predictions of all images so far."""
        done = self._solve_waiting() if self._waiting else {}
        if self._infer is not None:
            done |= self._predictions(self._infer.finish())
        return done

    def _solve_waiting(self) -> dict[int, Prediction]:
        waiting, self._waiting = self._waiting, {}
        if self._infer is None or not self._filled:
            results = {i: self._segmenter(image)[0] for i, image in waiting.items()}
            self._unfinished = {}
            return results
        missing = self.batch_size - len(waiting)
        images = [normalized(image) for image in waiting.values()]
        batch = {
            # Repeated, because an image of no meaning might need more steps than any.
            "image": np.concatenate([*images, *[images[-1]] * missing]),
            "mask": (np.arange(self.batch_size) < len(waiting)).astype(np.float32),
            "index": np.array([*waiting, *[-1] * missing], np.int32),
        }
        return self._predictions(self._infer(batch))

    def _predictions(self, results: dict) -> dict[int, Prediction]:
        for index in results:
            del self._unfinished[index]
        return {index: Prediction.of(summary) for index, summary in results.items()}


def batch_size_for(task: Task, config: ConfigDict, shape: tuple) -> int:
    """Images of `shape` that are given to the network at once; 1 without continuous batching.

    As many as a device takes in an evaluation, or fewer if they have more pixels than those.
    """
    if config.eval.continuous_batching != "on" or why_not(task, config):
        return 1
    share = (config.eval.batch_size or config.train.batch_size) // jax.device_count()
    if sides := config.data.eval_image_size or config.data.image_size:
        share = min(share, share * math.prod(sides) // math.prod(shape[:2]))
    return max(1, share)
