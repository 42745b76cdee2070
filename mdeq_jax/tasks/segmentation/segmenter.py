"""A trained segmentation network as a function of pictures."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import CLASS_TABLES, LabelClass
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD
from mdeq_jax.data.vision.label_classes import evaluated
from mdeq_jax.engine.evaluation import load_checkpoint
from mdeq_jax.models import build_model
from mdeq_jax.solvers import Status
from mdeq_jax.tasks.segmentation.inference import (
    InferenceSettings,
    pixel_residual,
    scaled_size,
    segment,
    whole_image,
)


class Prediction(NamedTuple):
    """What the network says of one picture, on the host.

    Attributes:
        classes: int `[H, W]`, train ids.
        confidence: `[H, W]` probability of that class.
        nfe: evaluations of the cell.
        rel_residual: of the equilibrium.
        converged: whether it reached `tol`.
        steps: solver step that gave the equilibrium; 0 is the start.
        rel_trace: `[max_steps]` relative residual after each step, NaN once the solve had ended.
    """

    classes: np.ndarray
    confidence: np.ndarray
    nfe: int
    rel_residual: float
    converged: bool
    steps: int
    rel_trace: np.ndarray

    def nfe_to(self, rel_residual: float) -> int:
        """Evaluations after which the residual was at most this; all of them if it never was."""
        if self.steps == 0 and self.rel_residual <= rel_residual:
            return 1
        reached = np.flatnonzero(self.rel_trace <= rel_residual)
        return int(reached[0]) + 2 if reached.size else self.nfe


class Segmenter:
    """A trained network as a function of pictures; compiles once for each size.

    Attributes:
        settings: scales, mirroring and windows.
        classes: of the data set, in the order of their train ids.
    """

    def __init__(self, config, workdir: str | Path, checkpoint: str = "latest"):
        """Loads the network.

        Args:
            config: a config of the network; `data.name` gives the classes, `eval` the inference.
            workdir: of `train_and_evaluate` or of a converted file.
            checkpoint: "latest", "best", or a step.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: settings that do not fit each other or the checkpoint.
        """
        self.classes = class_table(config)
        self.settings = settings = InferenceSettings.from_config(config)
        model = build_model(config)
        self._stride = 2**config.model.downsample_times
        variables, self.step = load_checkpoint(config, Path(workdir), model, checkpoint)
        self._variables = jax.device_put(variables)

        def finish(logits, solution, z_star):
            probabilities = jax.nn.softmax(logits[0])
            report = jax.tree.map(
                lambda x: x[0], (solution.rel_residual, solution.status, solution.steps)
            )
            report = (solution.nfe, *report, solution.rel_trace[:, 0])
            best = jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1)
            return (*best, *report), z_star

        def plain(variables, images, z0):
            logits, out = whole_image(model, variables, images, settings, z0=z0)
            return finish(logits, out.solution, out.z_star)

        def any_settings(variables, images):
            return finish(*segment(model, variables, images, settings), None)

        self._plain = jax.jit(plain)
        self._any = jax.jit(any_settings)
        self._residual = jax.jit(partial(pixel_residual, model, settings=settings))

    def __call__(self, image: np.ndarray, z0=None) -> tuple[Prediction, tuple | None]:
        """Segments one picture.

        Args:
            image: uint8 `[H, W, 3]`.
            z0: start of the solver, an equilibrium of a picture of the same size; None: zero.

        Returns:
            The prediction, and its equilibrium (None unless `settings.is_plain`).
        """
        images = normalized(image)
        if self.settings.is_plain:
            (classes, confidence, *report), z_star = self._plain(self._variables, images, z0)
        else:
            (classes, confidence, *report), z_star = self._any(self._variables, images)
        nfe, residual, status, steps, trace = jax.device_get(report)
        prediction = Prediction(
            np.asarray(classes),
            np.asarray(confidence),
            int(nfe),
            float(residual),
            bool(status == Status.CONVERGED),
            int(steps),
            trace,
        )
        return prediction, z_star

    def residual(self, image: np.ndarray, z0=None) -> np.ndarray:
        """The relative residual of the equilibrium at each pixel, without padding.

        See `pixel_residual`; `[h, w]` at the network's highest resolution. `z0` is that of the
        prediction.
        """
        height, width = (
            -(-side // self._stride)
            for side in scaled_size(image.shape[:2], self.settings.nearest_scale)
        )
        residual = np.asarray(self._residual(self._variables, normalized(image), z0=z0))
        return residual[0, :height, :width]


def normalized(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` to float32 `[1, H, W, 3]`, as the network was trained with."""
    return augment.normalize(image[None], IMAGENET_MEAN, IMAGENET_STD)


def class_table(config) -> tuple[LabelClass, ...]:
    """The classes of `config.data.name`, in the order of their train ids.

    Raises:
        ValueError: the network or the data set is not for segmentation, or they differ in their
            number of classes.
    """
    if config.model.name != "mdeq_segmenter" or config.data.name not in CLASS_TABLES:
        raise ValueError(
            f"Pictures of segmentations need model.name='mdeq_segmenter' and a data.name of "
            f"{sorted(CLASS_TABLES)}; got {config.model.name!r} and {config.data.name!r}."
        )
    classes = evaluated(CLASS_TABLES[config.data.name])
    if len(classes) != config.model.num_classes:
        raise ValueError(
            f"model.num_classes={config.model.num_classes}, but {config.data.name} has "
            f"{len(classes)} classes: set data.name to the data set that the network was trained "
            f"on, one of {sorted(CLASS_TABLES)}."
        )
    return classes


def denormalized(image: np.ndarray) -> np.ndarray:
    """float32 `[H, W, 3]` of a batch back to uint8."""
    return np.rint(255 * (image * IMAGENET_STD + IMAGENET_MEAN)).astype(np.uint8)
