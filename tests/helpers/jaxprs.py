"""What a traced function consists of, its inner programs included."""

from collections import Counter
from collections.abc import Iterator

import jax
from jax.extend import core


def equations(jaxpr) -> Iterator:
    """Equations of a jaxpr, also those within loops, branches, calls and kernels."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def primitives(function, *args) -> Counter:
    """How often each primitive occurs in a function."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return Counter(equation.primitive.name for equation in equations(jaxpr))


def loop_bodies(function, *args) -> list:
    """Jaxprs of the bodies of a function's while loops, inner loops included."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    loops = (equation for equation in equations(jaxpr) if equation.primitive.name == "while")
    return [equation.params["body_jaxpr"].jaxpr for equation in loops]


def loop_shapes(function, *args) -> set[tuple[int, ...]]:
    """Shapes of the arrays that a function's while loops carry."""
    return {
        variable.aval.shape for body in loop_bodies(function, *args) for variable in body.outvars
    }
