"""Segmentation of whole images: any size, several scales, mirrored, in sliding windows.

Everything here is a pure function of (model, variables, images), to be compiled by the caller.
Resizing aligns corners both ways, like the network's own, so that nothing shifts between scales.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mdeq_jax.layers import resize_bilinear, upsample_nearest
from mdeq_jax.solvers import Solution
from mdeq_jax.solvers.norms import relative, safe_norm
from mdeq_jax.tree import ravel_batch


class InferenceSettings(NamedTuple):
    """How images are segmented.

    Attributes:
        factor: image sides must be multiples of it: 2^(downsample_times + resolutions - 1).
        scales: of the image, each of which is segmented; the probabilities are averaged.
        flip: the mirrored image too.
        window: height and width of sliding windows; None: the whole image at once.
        stride: of the windows, down and right.
    """

    factor: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    @classmethod
    def from_config(cls, config) -> "InferenceSettings":
        """The settings of `config.model` and `config.eval`; a stride of None is 2/3 of the window.

        Raises:
            ValueError: a setting that cannot work.
        """
        model, settings = config.model, config.eval
        factor = 2 ** (model.downsample_times + len(model.channels) - 1)
        scales = tuple(settings.scales)
        numbers = all(isinstance(scale, int | float) for scale in scales)
        if not scales or not numbers or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(
                f"eval.scales={scales} must be one or more numbers above 0; (1.0,) is the image "
                "as it is."
            )
        window, stride = (_sides(settings, field) for field in ("window", "stride"))
        if window is None and stride is not None:
            raise ValueError(f"eval.stride={stride} has no effect without eval.window.")
        if window is not None:
            if any(side < 1 or side % factor for side in window):
                raise ValueError(
                    f"eval.window={window} must be (height, width), both multiples of {factor}, "
                    "which the network's scales need."
                )
            # As the original: windows that overlap by a third.
            stride = stride or tuple(max(1, side * 2 // 3) for side in window)
            if any(not 1 <= s <= w for s, w in zip(stride, window)):
                raise ValueError(
                    f"eval.stride={stride} must be (down, right), each from 1 to that side of "
                    f"eval.window={window}, or pixels between the windows would be left out."
                )
        return cls(factor, scales, settings.flip, window, stride)

    @property
    def nearest_scale(self) -> float:
        """The scale nearest to 1."""
        return min(self.scales, key=lambda scale: abs(math.log(scale)))

    @property
    def is_plain(self) -> bool:
        """Whether one forward pass of the whole image gives the result."""
        return len(self.scales) == 1 and not self.flip and self.window is None


def _sides(settings, field: str) -> tuple[int, int] | None:
    """A pair of `config.eval`, or None; "None" on the command line makes (None,) of a tuple."""
    given = settings[field]
    if given is None or tuple(given) == (None,):
        return None
    sides = tuple(given)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(
            f"eval.{field}={sides} must be two whole numbers of pixels, down and right, or None."
        )
    return sides


def pad_to_multiple(images: jax.Array, factor: int) -> jax.Array:
    """Pads `[B, H, W, 3]` images at the bottom and right, by repeating their last pixels.

    Not with black: a network that has seen little of it takes a black border for an object, and
    the group norms carry it into the whole image.
    """
    height, width = images.shape[1:3]
    rows, columns = -height % factor, -width % factor
    if not rows and not columns:
        return images
    return jnp.pad(images, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")


def network_input(images: jax.Array, settings: InferenceSettings) -> jax.Array:
    """Images `[B, H, W, 3]` of any size as a forward pass takes them.

    At the scale nearest to 1, and padded to sides that the network can halve.
    """
    scaled = resize_bilinear(images, scaled_size(images.shape[1:3], settings.nearest_scale))
    return pad_to_multiple(scaled, settings.factor)


def image_logits(
    logits: jax.Array, size: tuple[int, int], settings: InferenceSettings
) -> jax.Array:
    """Logits `[B, h, w, C]` of a `network_input`, resized bilinearly to the size of the image."""
    height, width = scaled_size(size, settings.nearest_scale)
    padded = tuple(side + -side % settings.factor for side in (height, width))
    logits = resize_bilinear(logits, padded)[:, :height, :width]
    return resize_bilinear(logits, size)


def whole_image(
    model, variables, images: jax.Array, settings: InferenceSettings, *, step_budget=None, z0=None
) -> tuple[jax.Array, object]:
    """One forward pass of images of any size.

    Args:
        model: segments images whose sides are multiples of `settings.factor`.
        variables: its variables.
        images: `[B, H, W, 3]`, normalised.
        settings: the scale nearest to 1 is taken.
        step_budget: most solver steps; None: those of the model.
        z0: start of the solver, for the scaled and padded images; None: zero.

    Returns:
        Logits `[B, H, W, C]`, resized bilinearly, and the model's output.
    """
    start = {} if z0 is None else {"z0": z0}
    inputs = network_input(images, settings)
    out = model.apply(variables, inputs, step_budget=step_budget, **start)
    return image_logits(out.logits, images.shape[1:3], settings), out


def segment(
    model, variables, images: jax.Array, settings: InferenceSettings, step_budget=None
) -> tuple[jax.Array, Solution]:
    """Segments images of any size as `settings` say.

    The result is the mean over scales, mirror images and windows of the classes' probabilities
    (the original means exp(logits) over windows and scales and logits over mirror images; a
    probability has the same weight wherever it comes from).

    Args:
        model: segments images whose sides are multiples of `settings.factor`.
        variables: its variables.
        images: `[B, H, W, 3]`, normalised.
        settings: scales, mirroring, windows.
        step_budget: most solver steps; None: those of the model.

    Returns:
        Logits `[B, H, W, C]` (logarithms of the mean probabilities unless `settings.is_plain`) and
        the solver's report at the scale nearest to 1, not mirrored; with windows, each sample's
        worst one, its `nfe` the sum over the windows. Its `z` is empty unless plain.
    """
    if settings.is_plain:
        logits, out = whole_image(model, variables, images, settings, step_budget=step_budget)
        return logits, out.solution
    size, total, reported = images.shape[1:3], 0.0, None
    for scale in settings.scales:
        scaled = resize_bilinear(images, scaled_size(size, scale))
        probabilities, solution = _segment_views(model, variables, scaled, settings, step_budget)
        total = total + resize_bilinear(probabilities, size)
        if scale == settings.nearest_scale:
            reported = solution
    mean = total / len(settings.scales)
    return jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)), reported


def pixel_residual(
    model, variables, images: jax.Array, settings: InferenceSettings, *, z0=None
) -> jax.Array:
    """Where in the image the equilibrium is not yet one.

    |f(z) - z| over the channels of each pixel of the highest resolution. What a lower resolution
    adds is spread evenly over the pixels that it covers, and the whole is divided by |f(z)| and
    multiplied by the root of the number of pixels: the root mean square of the map is the relative
    residual of the image. The image is taken whole, at the scale nearest to 1.

    Args:
        model: of `build_model`.
        variables: its variables.
        images: `[B, H, W, 3]`, normalised.
        settings: its scales are read.
        z0: start of the solver, as for `whole_image`.

    Returns:
        `[B, h, w]`, h and w those of the padded, scaled image over 2^downsample_times.
    """
    problem = model.fixed_point_problem(variables, network_input(images, settings))
    if z0 is not None:
        problem = problem._replace(z0=z0)
    _, solution = model.solve(problem)
    z = problem.unravel(solution.z)
    fz = problem.evaluate(z)
    squares = sum(
        upsample_nearest(jnp.sum(jnp.square(a - b), axis=-1, keepdims=True), 2**i) / 4**i
        for i, (a, b) in enumerate(zip(fz, z))
    )[..., 0]
    size = safe_norm(ravel_batch(fz)[0])
    pixels = squares.shape[1] * squares.shape[2]
    return relative(jnp.sqrt(squares * pixels), size[:, None, None])


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width of an image at a scale, rounded, at least 1."""
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def _segment_views(model, variables, images, settings, step_budget):
    """Mean probabilities over windows and mirror images at one scale, and the report.

    The views are taken one after the other, so that memory is that of one, and compiled once.
    """
    height, width = images.shape[1:3]
    padded = pad_to_multiple(images, settings.factor)
    window, corners = windows(padded.shape[1:3], settings.window, settings.stride)
    flips = (False, True) if settings.flip else (False,)
    views = [(top, left, flip) for flip in flips for top, left in corners]
    counts = np.zeros(padded.shape[1:3])
    for top, left, _ in views:
        counts[top : top + window[0], left : left + window[1]] += 1

    def one_view(top, left, flip):
        part = lax.dynamic_slice_in_dim(padded, top, window[0], axis=1)
        part = lax.dynamic_slice_in_dim(part, left, window[1], axis=2)
        part = jnp.where(flip, part[:, :, ::-1], part)
        out = model.apply(variables, part, step_budget=step_budget)
        probabilities = jax.nn.softmax(resize_bilinear(out.logits, window))
        return jnp.where(flip, probabilities[:, :, ::-1], probabilities), out.solution

    def add_view(total, view):
        top, left, flip = view
        probabilities, solution = one_view(top, left, flip)
        start = (0, top, left, 0)
        here = lax.dynamic_slice(total, start, probabilities.shape)
        total = lax.dynamic_update_slice(total, here + probabilities, start)
        return total, solution._replace(z=solution.z[:, :0], recorded=(), inverse=())

    tops, lefts, mirrored = (jnp.asarray(column) for column in zip(*views))
    like = jax.eval_shape(one_view, tops[0], lefts[0], mirrored[0])[0]
    total = jnp.zeros((*padded.shape[:3], like.shape[-1]), like.dtype)
    total, solutions = lax.scan(add_view, total, (tops, lefts, mirrored))
    mean = total / jnp.asarray(counts, like.dtype)[None, :, :, None]
    solution = _worst(jax.tree.map(lambda x: x[: len(corners)], solutions))
    return mean[:, :height, :width], solution


def windows(
    size: tuple[int, int], window: tuple[int, int] | None, stride: tuple[int, int] | None
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Where sliding windows lie: every `stride`, the last ones flush with the border.

    Args:
        size: height and width of the image.
        window: height and width of the windows; None: the whole image.
        stride: from one to the next, down and right.

    Returns:
        The size of the windows, no larger than the image, and their upper left corners.
    """
    if window is None:
        return size, [(0, 0)]
    window = tuple(min(sides) for sides in zip(window, size))
    tops, lefts = (
        [min(i * step, side - part) for i in range(-(-(side - part) // step) + 1)]
        for side, part, step in zip(size, window, stride)
    )
    return window, [(top, left) for top in tops for left in lefts]


def _worst(solutions: Solution) -> Solution:
    """Of reports with a leading axis of windows, each sample's with the largest residual."""
    worst = jnp.argmax(solutions.rel_residual, axis=0)  # [B]
    samples = jnp.arange(worst.size)
    return jax.tree.map(lambda x: x[0], solutions)._replace(
        residual=solutions.residual[worst, samples],
        rel_residual=solutions.rel_residual[worst, samples],
        steps=solutions.steps[worst, samples],
        nfe=jnp.sum(solutions.nfe),
        status=solutions.status[worst, samples],
        abs_trace=solutions.abs_trace[worst, :, samples].T,
        rel_trace=solutions.rel_trace[worst, :, samples].T,
    )
