"""Segmentation of whole images: any size, several scales, mirrored, in sliding windows.

Everything here is a pure function of (model, variables, images), which the caller compiles.
Resizing aligns corners both ways, as the network's own does, so nothing shifts between scales.
"""

from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mdeq_jax.layers import resize_bilinear, upsample_nearest
from mdeq_jax.models import EquilibriumModel, ForwardOptions, ModelOutput
from mdeq_jax.solvers import Solution
from mdeq_jax.solvers.norms import relative, safe_norm
from mdeq_jax.tasks.segmentation.settings import InferenceSettings
from mdeq_jax.tree import PyTree, ravel_batch


def size_of(images: jax.Array) -> tuple[int, int]:
    """Height and width of `[B, H, W, ...]`."""
    return images.shape[1], images.shape[2]


def pad_to_multiple(images: jax.Array, factor: int, least: tuple[int, int] = (1, 1)) -> jax.Array:
    """Pads `[B, H, W, 3]` images at the bottom and right, by repeating their last pixels.

    The sides are then multiples of `factor` and no less than `least`.

    Black is no choice: a network that has seen little of it takes a black border for an object,
    and the group norms carry it into the whole image.
    """
    height, width = size_of(images)
    rows, columns = max(-height % factor, least[0] - height), max(-width % factor, least[1] - width)
    if not rows and not columns:
        return images
    return jnp.pad(images, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")


def network_input(images: jax.Array, settings: InferenceSettings) -> jax.Array:
    """Images `[B, H, W, 3]` of any size as a forward pass takes them.

    At the scale nearest to 1, and padded to sides that the network can halve.
    """
    scaled = resize_bilinear(images, scaled_size(size_of(images), settings.nearest_scale))
    return pad_to_multiple(scaled, settings.factor)


def to_image_size(
    outputs: ModelOutput, size: tuple[int, int], settings: InferenceSettings
) -> ModelOutput:
    """Outputs for a `network_input`, the logits resized bilinearly to the size of the image."""
    height, width = scaled_size(size, settings.nearest_scale)
    padded = height + -height % settings.factor, width + -width % settings.factor
    logits = resize_bilinear(outputs.logits, padded)[:, :height, :width]
    return outputs._replace(logits=resize_bilinear(logits, size))


def whole_image(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    settings: InferenceSettings,
    *,
    step_budget: jax.Array | None = None,
    z0: PyTree | None = None,
) -> ModelOutput:
    """One forward pass of images of any size.

    Args:
        model: segments images whose sides are multiples of `settings.factor`.
        variables: its variables.
        images: `[B, H, W, 3]`, normalised.
        settings: the scale nearest to 1 is taken.
        step_budget: most solver steps; None: those of the model.
        z0: start of the solver, for the scaled and padded images; None: zero.

    Returns:
        The model's output, with logits `[B, H, W, C]`, resized bilinearly.
    """
    start = {} if z0 is None else {"z0": z0}
    inputs = network_input(images, settings)
    forward = ForwardOptions(step_budget=step_budget)
    out: Any = model.apply(variables, inputs, forward=forward, **start)
    return to_image_size(out, size_of(images), settings)


def segment(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    settings: InferenceSettings,
    step_budget: jax.Array | None = None,
) -> ModelOutput:
    """Segments images of any size with `settings`.

    The result is the mean of the classes' probabilities over scales, mirror images and windows. The
    original averages exp(logits) over windows and scales, and logits over mirror images. Here a
    probability has the same weight wherever it comes from.

    Args:
        model: segments images whose sides are multiples of `settings.factor`.
        variables: its variables.
        images: `[B, H, W, 3]`, normalised.
        settings: scales, mirroring, windows.
        step_budget: most solver steps; None: those of the model.

    Returns:
        Logits `[B, H, W, C]`, which are logarithms of the mean probabilities unless
        `settings.single_pass`, and the solver's report at the scale nearest to 1, not mirrored.
        With windows it is each sample's worst report, and `nfe` is the sum over the windows. Its
        `z` is empty unless `settings.single_pass`.
    """
    if settings.single_pass:
        return whole_image(model, variables, images, settings, step_budget=step_budget)
    size, reported = size_of(images), None
    total: Any = 0.0
    for scale in settings.scales:
        scaled = resize_bilinear(images, scaled_size(size, scale))
        probabilities, solution = _segment_views(model, variables, scaled, settings, step_budget)
        total = total + resize_bilinear(probabilities, size)
        if scale == settings.nearest_scale:
            reported = solution
    mean = total / len(settings.scales)
    return ModelOutput(jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)), reported)


def pixel_residual(
    model: EquilibriumModel,
    variables: dict,
    images: jax.Array,
    settings: InferenceSettings,
    *,
    z0: PyTree | None = None,
) -> jax.Array:
    """The residual of the equilibrium at each place of the image.

    |f(z) - z| over the channels of each pixel of the highest resolution. A lower resolution's
    share is spread evenly over the pixels that it covers. The whole is divided by |f(z)| and
    multiplied by the root of the number of pixels: the root mean square of the map is the
    relative residual of the image. The image is taken whole, at the scale nearest to 1.

    Args:
        model: of `build_model`, with an equilibrium.
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
    squares = [
        upsample_nearest(jnp.sum(jnp.square(a - b), axis=-1, keepdims=True), 2**i) / 4**i
        for i, (a, b) in enumerate(zip(fz, z))
    ]
    squares = reduce(jnp.add, squares)[..., 0]
    size = safe_norm(ravel_batch(fz)[0])
    pixels = squares.shape[1] * squares.shape[2]
    return relative(jnp.sqrt(squares * pixels), size[:, None, None])


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width of an image at a scale, rounded, at least 1."""
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def _segment_views(model, variables, images, settings, step_budget):
    """Mean probabilities over windows and mirror images at one scale, and the report.

    A scan takes one view after the other: memory is that of one view, and it is compiled once.
    """
    height, width = size_of(images)
    padded = pad_to_multiple(images, settings.factor, settings.least)
    window, corners = windows(size_of(padded), settings.window, settings.stride)
    flips = (False, True) if settings.flip else (False,)
    views = [(top, left, flip) for flip in flips for top, left in corners]
    counts = np.zeros(size_of(padded))
    for top, left, _ in views:
        counts[top : top + window[0], left : left + window[1]] += 1

    def one_view(top, left, flip):
        part = lax.dynamic_slice_in_dim(padded, top, window[0], axis=1)
        part = lax.dynamic_slice_in_dim(part, left, window[1], axis=2)
        part = jnp.where(flip, part[:, :, ::-1], part)
        out = model.apply(variables, part, forward=ForwardOptions(step_budget=step_budget))
        probabilities = jax.nn.softmax(resize_bilinear(out.logits, window))
        return jnp.where(flip, probabilities[:, :, ::-1], probabilities), out.solution

    def add_view(total, view):
        top, left, flip = view
        probabilities, solution = one_view(top, left, flip)
        start = (0, top, left, 0)
        here = lax.dynamic_slice(total, start, probabilities.shape)
        total = lax.dynamic_update_slice(total, here + probabilities, start)
        if solution is not None:  # the state itself is not needed, and would be kept for each view
            solution = solution._replace(z=solution.z[:, :0], recorded=(), inverse=())
        return total, solution

    tops, lefts, mirrored = (jnp.asarray(column) for column in zip(*views))
    like = jax.eval_shape(one_view, tops[0], lefts[0], mirrored[0])[0]
    total = jnp.zeros((*padded.shape[:3], like.shape[-1]), like.dtype)
    total, solutions = lax.scan(add_view, total, (tops, lefts, mirrored))
    mean = total / jnp.asarray(counts, like.dtype)[None, :, :, None]
    if solutions is not None:
        solutions = _worst(jax.tree.map(lambda x: x[: len(corners)], solutions))
    return mean[:, :height, :width], solutions


def windows(
    size: tuple[int, int], window: tuple[int, int] | None, stride: tuple[int, int] | None
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The places of sliding windows: one every `stride`, the last ones flush with the border.

    Args:
        size: height and width of the image.
        window: height and width of the windows; None: the whole image.
        stride: from one to the next, down and right.

    Returns:
        The size of the windows, no larger than the image, and their upper left corners.
    """
    if window is None or stride is None:
        return size, [(0, 0)]
    part = (min(window[0], size[0]), min(window[1], size[1]))
    tops, lefts = (
        [min(i * step, side - inner) for i in range(-(-(side - inner) // step) + 1)]
        for side, inner, step in zip(size, part, stride)
    )
    return part, [(top, left) for top in tops for left in lefts]


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
