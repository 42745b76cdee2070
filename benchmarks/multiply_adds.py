"""Multiply-adds of the convolutions and matrix products of any function, counted as it is traced.

Published "FLOPs" of image classifiers are such multiply-adds of one image.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from mdeq_jax import hardware
from mdeq_jax.models import build_model


def multiply_adds(function: Callable, *args: Any) -> int:
    """Counts what `function(*args)` computes. Loops count once; nothing is computed.

    Args:
        function: to trace.
        args: arrays, or their shapes.
    """
    with hardware.compiling_for("gpu"):  # every convolution as one operation
        return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: isinstance(p, core.ClosedJaxpr)
        )
        total += sum(_count(p.jaxpr) for p in inner if isinstance(p, core.ClosedJaxpr))
        total += sum(_count(p) for p in inner if isinstance(p, core.Jaxpr))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += _size(equation) * prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            rows, columns, c_in, _ = equation.invars[1].aval.shape  # HWIO
            total += _size(equation) * rows * columns * c_in
    return total


def _size(equation: core.JaxprEqn) -> int:
    return prod(equation.outvars[0].aval.shape)


def of_config(config) -> int:
    """Of one image in evaluation mode; of a solver's loop one step is counted."""
    model = build_model(config)
    image = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return multiply_adds(model.apply, variables, image)
