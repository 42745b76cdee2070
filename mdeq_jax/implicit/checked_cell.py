"""The cell that a gradient receives: checked against its state, and without closed-over tracers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from mdeq_jax.implicit.problem import Cell
from mdeq_jax.solvers.validate import check_float_array
from mdeq_jax.tree import PyTree, ravel_batch


class CheckedCell(NamedTuple):
    """A cell that keeps its state's structure, shapes and types, and what it is called with.

    Attributes:
        f: cell, `f(params, z, x) -> z`, which closes over no traced values.
        params: parameters, and the traced values that the given cell closed over.
        z0: start, its leaves in their common type.
        aux: (params, z, x) -> the given cell's second result; None without `has_aux`.
    """

    f: Cell
    params: PyTree
    z0: PyTree
    aux: Cell | None


def checked_cell(
    f: Cell, params: PyTree, x: PyTree, z0: PyTree, *, has_aux: bool = False
) -> CheckedCell:
    """Checks a cell's state by one abstract evaluation, and hoists what the cell closes over.

    Args:
        f: cell, `f(params, z, x) -> z`, or `-> (z, aux)` with `has_aux`. Values under
            differentiation, or traced otherwise, that it closes over become parameters.
        params: parameters of the cell.
        x: input injection.
        z0: start, leaves `[B, ...]`; it gets no gradient.
        has_aux: whether f returns a pair.

    Raises:
        TypeError: a leaf of `z0` is not a floating-point array, f changes a leaf's type, or f
            returns no pair.
        ValueError: `z0` has no batch axis, or f changes the structure or a leaf's shape.
    """
    _check_state(z0)
    flat, unravel = ravel_batch(lax.stop_gradient(z0))
    z0 = unravel(flat)
    closed, out = jax.make_jaxpr(f, return_shape=True)(params, z0, x)
    if has_aux:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                f"With has_aux=True, f must return a pair (z, aux); it returns {_described(out)}."
            )
        out = out[0]
    _check_result(z0, out)
    hoisted = any(isinstance(const, Tracer) for const in closed.consts)
    if hoisted:
        f, params = _without_closure(f, params, z0, x, closed)
    if not has_aux:
        return CheckedCell(f, params, z0, None)
    return CheckedCell(
        lambda params, z, x: f(params, z, x)[0], params, z0, lambda *args: f(*args)[1]
    )


def _without_closure(f: Cell, params, z0, x, closed) -> tuple[Cell, PyTree]:
    """The cell as the function of what it closes over, and its parameters with these values."""
    traced = [isinstance(const, Tracer) for const in closed.consts]
    known = [None if take else const for const, take in zip(closed.consts, traced)]
    result = jax.tree.structure(jax.eval_shape(f, params, z0, x))

    def cell(params, z, x):
        params, hoisted = params
        values = iter(hoisted)
        consts = [next(values) if take else const for const, take in zip(known, traced)]
        run = jaxpr_as_fun(closed.replace(consts=consts))
        return jax.tree.unflatten(result, run(*jax.tree.leaves((params, z, x))))

    hoisted = [const for const, take in zip(closed.consts, traced) if take]
    return cell, (params, hoisted)


def _check_state(z0: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(z0)
    for path, leaf in leaves:
        name = "z0" + jax.tree_util.keystr(path)
        if isinstance(leaf, int | float):
            raise TypeError(
                f"z0 must be an array [B, ...] or a pytree of such arrays; {name} is the number "
                f"{leaf!r}. Convert lists with jnp.asarray."
            )
        check_float_array(name, leaf)
    if leaves and all(jnp.ndim(leaf) == 1 for _, leaf in leaves):
        shapes = ", ".join(str(jnp.shape(leaf)) for _, leaf in leaves)
        raise ValueError(
            f"z0 needs a leading batch axis and at least one more; got shape {shapes}. Pass "
            "z0[None] for one sample, or z0[:, None] for samples of one number."
        )


def _check_result(z0: PyTree, out: PyTree) -> None:
    """Refuses a cell whose result is no state like `z0`."""
    if jax.tree.structure(out) != jax.tree.structure(z0):
        raise ValueError(
            "f must return a state of the structure of z0, which is "
            f"{_described(z0)}; it returns {_described(out)}."
        )
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(z0), jax.tree.leaves(out)):
        name = jax.tree_util.keystr(path)
        leaf = f"leaf {name} of the state" if name else "the state"
        if old.shape != new.shape:
            raise ValueError(
                f"f must keep the shape of every leaf of the state: {leaf} is {old.shape} in z0, "
                f"and {new.shape} in f(params, z0, x)."
            )
        if old.dtype != new.dtype:
            raise TypeError(
                f"f must keep the type of every leaf of the state: {leaf} has shape {old.shape} "
                f"and type {old.dtype}, and f returns {new.dtype} of shape {new.shape}. Cast it "
                "inside f. A state of several types is solved in their common type."
            )


def _described(tree: PyTree) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree))
