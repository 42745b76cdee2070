"""A trained segmentation network as a function of images."""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data import CLASS_TABLES, LabelClass, read_class_table
from mdeq_jax.data.vision import augment
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD
from mdeq_jax.data.vision.label_classes import evaluated
from mdeq_jax.models import EquilibriumModel, ModelOutput, family_of
from mdeq_jax.solvers import Status
from mdeq_jax.tasks.batched_inference import evaluations
from mdeq_jax.tasks.requests import TrainedModel
from mdeq_jax.tasks.segmentation.inference import pixel_residual, scaled_size, segment, whole_image
from mdeq_jax.tasks.segmentation.settings import InferenceSettings
from mdeq_jax.tree import PyTree


class Prediction(NamedTuple):
    """The network's result for one image, on the host.

    Attributes:
        classes: int `[H, W]`, train ids.
        confidence: `[H, W]` probability of that class.
        nfe: evaluations of the cell; 0 for a model without an equilibrium.
        rel_residual: of the equilibrium; NaN without one.
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

    @classmethod
    def of(cls, summary: tuple[tuple, tuple]) -> "Prediction":
        """From `summarize`, the row of one image on the host."""
        (classes, confidence), solve = summary
        if not solve:
            return cls(classes, confidence, 0, float("nan"), False, 0, np.zeros(0))
        nfe, residual, status, steps, trace = solve
        converged = bool(status == Status.CONVERGED)
        return cls(classes, confidence, int(nfe), float(residual), converged, int(steps), trace)

    def nfe_to(self, rel_residual: float) -> int:
        """Evaluations after which the residual was at most this; all of them if it never was."""
        if self.steps == 0 and self.rel_residual <= rel_residual:
            return 1
        reached = np.flatnonzero(self.rel_trace <= rel_residual)
        return int(reached[0]) + 2 if reached.size else self.nfe


class Segmenter:
    """A trained network as a function of images; compiles once for each size.

    Attributes:
        trained: the model.
        solves: whether it has an equilibrium.
        settings: scales, mirroring and windows.
        classes: of the data set, in the order of their train ids.
    """

    def __init__(self, trained: TrainedModel):
        """Prepares the functions to compile.

        Args:
            trained: the model; `config.data.name` gives the classes, `config.eval` the inference.

        Raises:
            ValueError: settings that do not fit each other.
        """
        config, model = trained.config, trained.model
        self.trained = trained
        self.classes = class_table(config)
        self.settings = settings = InferenceSettings.from_config(config)
        self._variables = jax.device_put(trained.variables)
        self.solves = family_of(config).has_equilibrium
        self._stride = 2**config.model.downsample_times if self.solves else 1

        def single_pass(variables, images, z0):
            out = whole_image(model, variables, images, settings, z0=z0)
            return summarize(out), out.z_star

        def all_views(variables, images):
            out = segment(model, variables, images, settings)
            return summarize(out)

        self._single_pass, self._all_views = jax.jit(single_pass), jax.jit(all_views)
        self._residual = jax.jit(
            partial(pixel_residual, cast(EquilibriumModel, model), settings=settings)
        )

    def __call__(
        self, image: np.ndarray, z0: PyTree | None = None
    ) -> tuple[Prediction, PyTree | None]:
        """Segments one image.

        Args:
            image: uint8 `[H, W, 3]`.
            z0: start of the solver, an equilibrium of an image of the same size; None: zero.

        Returns:
            The prediction, and its equilibrium (None unless `settings.single_pass`).
        """
        images, z_star = normalized(image), None
        if self.settings.single_pass:
            summary, z_star = self._single_pass(self._variables, images, z0)
        else:
            summary = self._all_views(self._variables, images)
        first = jax.tree.map(lambda x: x[0], jax.device_get(summary))
        return Prediction.of(first), z_star

    def residual(self, image: np.ndarray, z0: PyTree | None = None) -> np.ndarray:
        """The relative residual of the equilibrium at each pixel, without padding.

        See `pixel_residual`; `[h, w]` at the network's highest resolution. `z0` is that of the
        prediction. A model without an equilibrium has NaN everywhere.
        """
        height, width = (
            -(-side // self._stride)
            for side in scaled_size(image.shape[:2], self.settings.nearest_scale)
        )
        if not self.solves:
            return np.full((height, width), np.nan)
        residual = np.asarray(self._residual(self._variables, normalized(image), z0=z0))
        return residual[0, :height, :width]


def summarize(outputs: ModelOutput) -> tuple[tuple, tuple]:
    """Class and confidence `[B, H, W]`, and the solves: NFE, residual, status, step, trace `[B]`.

    The second part is empty without a solve.
    """
    probabilities, solution = jax.nn.softmax(outputs.logits), outputs.solution
    best = jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1)
    if solution is None:
        return best, ()
    samples = (solution.rel_residual, solution.status, solution.steps, solution.rel_trace.T)
    return best, (evaluations(solution), *samples)


def normalized(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` to float32 `[1, H, W, 3]`, normalised as in training."""
    return augment.normalize(image[None], IMAGENET_MEAN, IMAGENET_STD)


def class_table(config: ConfigDict) -> tuple[LabelClass, ...]:
    """The classes of `config.data.name`, in the order of their train ids.

    Raises:
        ValueError: the data set is not for segmentation, or has another number of classes than the
            network.
    """
    table = read_class_table(config.data)
    if table is None:
        raise ValueError(
            f"Pictures of segmentations need a data.name of {sorted(CLASS_TABLES)}; got "
            f"{config.data.name!r}."
        )
    classes = evaluated(table)
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
