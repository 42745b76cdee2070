"""Validation of a solver's arguments before anything is compiled."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

STOP_MODES = ("rel", "abs")


def check_count(name: str, value: int) -> None:
    """Refuses a value that is not an integer of at least 1.

    Raises:
        TypeError: not an integer, or traced.
        ValueError: below 1.
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be a Python integer, because it sizes buffers; got a traced value of "
            f"type {jax.typeof(value)}. Pass the largest number there, and the traced one as "
            "step_budget."
        )
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer of at least 1; got {value!r}.") from None
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}.")


def check_tolerance(tol: float | jax.Array) -> None:
    """Refuses a tolerance that is negative, NaN or of the wrong shape; it may be traced.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or not one number, or one per sample.
    """
    try:
        ndim, kind = jnp.ndim(tol), jnp.result_type(tol)
    except TypeError:
        ndim, kind = 0, None
    if kind is None or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise TypeError(f"tol must be a number, or one per sample [B]; got {tol!r}.")
    if ndim > 1:
        raise ValueError(
            f"tol must be a number, or one per sample [B]; got shape {jnp.shape(tol)}."
        )
    if not isinstance(tol, Tracer) and not np.all(np.asarray(tol) >= 0):
        raise ValueError(f"tol must not be negative; got {tol}.")


def check_start(z0: jax.Array) -> None:
    """Refuses a start that is not a `[B, D]` array of floating-point numbers.

    Raises:
        ValueError: the shape is another.
        TypeError: not an array, or not of a floating-point type that JAX computes in.
    """
    check_float_array("z0", z0)
    if jnp.ndim(z0) != 2:
        raise ValueError(
            f"z0 must have two axes [batch, features]; got shape {jnp.shape(z0)}. For one sample "
            "pass z0[None]. For other states use mdeq_jax.implicit.equilibrium, which takes any "
            "pytree with a leading batch axis."
        )


def check_float_array(name: str, array) -> None:
    """Refuses anything but an array of a floating-point type that JAX computes in.

    Raises:
        TypeError: names the value, the requirement and the remedy.
    """
    if not isinstance(array, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise TypeError(
            f"{name} must be a floating-point array; got a {type(array).__name__}. "
            "Convert it with jnp.asarray."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating-point array; got {array.dtype}. Cast it, for example with "
            ".astype(jnp.float32)."
        )
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise TypeError(
            f"{name} is a NumPy array of {array.dtype}, but JAX computes in "
            f"{jax.dtypes.canonicalize_dtype(array.dtype)}. Pass jnp.asarray({name}), or set "
            "jax_enable_x64."
        )


def check_arguments(
    f: Callable,
    z0: jax.Array,
    *,
    max_steps: int,
    tol: float | jax.Array,
    stop_mode: str,
    step_budget: int | jax.Array | None,
) -> None:
    """Refuses arguments that would otherwise fail late, inside a compiled loop.

    Raises:
        ValueError: an argument is out of range, or f changes the shape of z.
        TypeError: `z0` is not a floating-point array, f changes the type of z, or a number of
            steps is not an integer.
    """
    check_start(z0)
    check_count("max_steps", max_steps)
    check_tolerance(tol)
    if stop_mode not in STOP_MODES:
        raise ValueError(f"stop_mode must be one of {STOP_MODES}; got {stop_mode!r}.")
    if step_budget is not None:
        kind = jnp.result_type(step_budget)
        if jnp.ndim(step_budget) != 0 or not jnp.issubdtype(kind, jnp.integer):
            raise TypeError(
                "step_budget must be one integer for the whole batch; "
                f"got {kind} of shape {jnp.shape(step_budget)}."
            )
        if isinstance(step_budget, int) and step_budget < 0:
            raise ValueError(f"step_budget must not be negative; got {step_budget}.")
    out = jax.eval_shape(f, z0)
    if not hasattr(out, "shape") or out.shape != z0.shape:
        raise ValueError(
            f"f must return an array of its argument's shape {z0.shape}; "
            f"it returns {getattr(out, 'shape', type(out).__name__)}."
        )
    if out.dtype != z0.dtype:
        raise TypeError(
            f"f must keep its argument's type: z0 is {z0.dtype}, f(z0) is {out.dtype}. "
            "Cast inside f (the solver's state keeps the type of z0)."
        )


def check_record_at(record_at: tuple[int, ...], max_steps: int) -> None:
    """Refuses steps to record that are not ascending or exceed `max_steps`.

    Raises:
        TypeError: one is not an integer.
        ValueError: they are not ascending, or one is below 1 or above `max_steps`.
    """
    for step in record_at:
        check_count("a step of record_at", step)
    if list(record_at) != sorted(set(record_at)) or (record_at and record_at[-1] > max_steps):
        raise ValueError(
            f"record_at must be ascending steps up to max_steps={max_steps}; got {record_at}."
        )
