"""From a config to a model, refusing what cannot work before anything is compiled."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from mdeq_jax import hardware
from mdeq_jax.implicit import GRADIENTS, equilibrium
from mdeq_jax.implicit.equilibrium import OWN_ITERATION, SOLVE_BACKWARD
from mdeq_jax.layers import BatchNorm
from mdeq_jax.models.mdeq.cell import CellSpec, MDEQCell
from mdeq_jax.models.mdeq.heads import ClassificationHead, SegmentationHead, Stem
from mdeq_jax.models.mdeq.network import MDEQ, check_image_size
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.solvers import build_solver
from mdeq_jax.solvers.options import check_choice, chosen_options, try_out

MODELS = ("mdeq_classifier", "mdeq_segmenter")
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}


def build_model(config) -> nn.Module:
    """The Flax module that a config describes.

    Args:
        config: a config of `configs/`; its `model`, `solver`, `gradient`, `precision`, `pallas`,
            `train.sync_batch_norm` and `data.image_size` are read.

    Returns:
        An `MDEQ`: `variables = model.init(rng, images)`, `out = model.apply(variables, images)`.

    Raises:
        ValueError: a setting that cannot work; says which, what was required and the choices.
    """
    model = config.model
    check_choice("model.name", model.name, MODELS)
    check_choice("precision", config.precision, PRECISIONS)
    platform = hardware.target().platform
    if config.pallas and platform == "tpu":
        raise ValueError(
            f"pallas=True uses kernels that are written for GPUs, but JAX runs on {platform!r}. "
            "Set it to False."
        )
    _check_model(model)
    if config.data.image_size is not None:
        height, width = config.data.image_size
        check_image_size((1, height, width, 3), model.downsample_times, len(model.channels))

    dtype = PRECISIONS[config.precision]
    f_solver = build_solver(config.solver.forward, "solver.forward", pallas=config.pallas)
    b_solver = build_solver(config.solver.backward, "solver.backward", pallas=config.pallas)
    spec = CellSpec(
        channels=tuple(model.channels),
        num_blocks=tuple(model.num_blocks),
        big_kernels=tuple(model.big_kernels),
        expansion=model.expansion,
        num_groups=model.num_groups,
        weight_norm=model.weight_norm,
        fuse_weight_norm=model.fuse_weight_norm,
        block_gn_affine=model.block_gn_affine,
        fuse_gn_affine=model.fuse_gn_affine,
        post_gn_affine=model.post_gn_affine,
        dropout=model.dropout,
        dtype=dtype,
        pallas=config.pallas,
    )
    segmentation = model.name == "mdeq_segmenter"
    norm = BatchNorm(
        momentum=0.99 if segmentation else 0.9,
        axis_name=BATCH_AXIS if config.train.sync_batch_norm else None,
        parent=None,
    )
    if segmentation:
        head = SegmentationHead(
            model.final_conv_kernel, model.num_classes, norm, dtype, parent=None
        )
    else:
        head = ClassificationHead(
            tuple(model.head_channels),
            model.final_channels,
            model.num_classes,
            norm,
            dtype,
            parent=None,
        )
    inject = model.downsample_times > 0 or len(model.channels) > 2
    return MDEQ(
        stem=Stem(model.channels[0], model.downsample_times, inject, norm, dtype, parent=None),
        cell=MDEQCell(spec, parent=None),
        head=head,
        f_solver=f_solver,
        gradient=_build_gradient(config, f_solver, b_solver),
        downsample_times=model.downsample_times,
    )


def _build_gradient(config, f_solver, b_solver):
    settings, forward = config.gradient, config.solver.forward
    check_choice("gradient.name", settings.name, GRADIENTS)
    function = GRADIENTS[settings.name]
    options = chosen_options(function, settings, "gradient")
    if function in SOLVE_BACKWARD:
        options["b_solver"] = b_solver
    if function in OWN_ITERATION:  # in the place of the forward solver, whose limits are theirs
        steps = options.setdefault("steps", forward.max_steps)
        if steps > forward.max_steps:
            raise ValueError(
                f"gradient.steps={steps} is above solver.forward.max_steps={forward.max_steps}, "
                f"which limits the steps of {settings.name!r} too. Raise it, or unset "
                "gradient.steps to take as many."
            )
        options |= {"tol": forward.tol, "stop_mode": forward.stop_mode}
    if settings.name == "shine" and forward.name != "broyden":
        raise ValueError(
            f"gradient.name='shine' takes the inverse estimate of a forward Broyden solve, but "
            f"solver.forward.name={forward.name!r}. Set it to 'broyden', or choose another "
            "gradient.name."
        )
    gradient = partial(function, **options)
    try_out(
        "gradient",
        lambda z: equilibrium(
            lambda params, z, x: jnp.cos(z), (), (), z, f_solver=f_solver, gradient=gradient
        )[0],
    )
    return gradient


def _check_model(model) -> None:
    scales = len(model.channels)
    if scales < 1:
        raise ValueError("model.channels needs one entry for each resolution; it is empty.")
    per_scale = ["num_blocks", "big_kernels"]
    if model.name == "mdeq_classifier":
        per_scale.append("head_channels")
    for field in per_scale:
        if len(model[field]) != scales:
            raise ValueError(
                f"model.{field} must have one entry for each of the {scales} resolutions of "
                f"model.channels={tuple(model.channels)}; got {tuple(model[field])}."
            )
    if model.num_groups < 2 or model.num_groups % 2:
        raise ValueError(
            "model.num_groups must be even (half as many groups are used after the fusion); "
            f"got {model.num_groups}."
        )
    for channels in model.channels:
        if channels % model.num_groups:
            raise ValueError(
                f"Each entry of model.channels must be a multiple of model.num_groups="
                f"{model.num_groups}, the groups of its group norms; got {channels} in "
                f"{tuple(model.channels)}."
            )
    if min(model.num_blocks) < 1:
        raise ValueError(
            f"Each entry of model.num_blocks must be at least 1; got {tuple(model.num_blocks)}."
        )
    if model.final_conv_kernel not in (1, 3, 5):
        raise ValueError(
            f"model.final_conv_kernel must be 1, 3 or 5; got {model.final_conv_kernel}."
        )
    if not 0 <= model.dropout < 1:
        raise ValueError(f"model.dropout must be in [0, 1); got {model.dropout}.")
    if model.num_classes < 1:
        raise ValueError(f"model.num_classes must be at least 1; got {model.num_classes}.")
    if model.downsample_times < 0:
        raise ValueError(
            f"model.downsample_times must not be negative; got {model.downsample_times}."
        )
