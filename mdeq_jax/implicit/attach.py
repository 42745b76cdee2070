"""Attaching a gradient to a state that a solver found."""

from collections.abc import Callable
from functools import partial

import jax

from mdeq_jax import hardware
from mdeq_jax.implicit.adjoint import BackwardStats
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.parallel import varying_like
from mdeq_jax.tree import PyTree, ravel_batch

LINEARIZE_AT = ("z_star", "f_z_star")

# Gives the solution, or an estimate, of the adjoint equation at the state z:
# (f, params, x, z, extra, dloss/dz) -> (u, statistics).
Adjoint = Callable[..., tuple[PyTree, BackwardStats]]


def attach_adjoint(
    f: Cell,
    params: PyTree,
    x: PyTree,
    z_star: PyTree,
    backward_stats: BackwardStats | None,
    *,
    adjoint: Adjoint,
    linearize_at: str = "z_star",
    extra: PyTree = (),
) -> PyTree:
    """f(params, z*, x), whose backward pass turns dloss/dz into u with `adjoint`.

    Only (params, x, z*) and `extra` are kept for the backward pass. Its result is differentiable
    again if that of `adjoint` is.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        backward_stats: see `BackwardStats`.
        adjoint: computes u, see `Adjoint`; must not close over arrays.
        linearize_at: where the backward pass takes the Jacobian: "z_star" or "f_z_star".
        extra: arrays for `adjoint`; they get no gradient.

    Raises:
        ValueError: unknown `linearize_at`.
    """
    if linearize_at not in LINEARIZE_AT:
        raise ValueError(f"linearize_at must be one of {LINEARIZE_AT}; got {linearize_at!r}.")
    if backward_stats is None:
        backward_stats = BackwardStats.zeros(jax.tree.leaves(z_star)[0].shape[0])
    z_star, extra = jax.lax.stop_gradient((z_star, extra))
    backward_stats = varying_like(z_star, backward_stats)
    return _attach(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attach(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats):
    return f(params, z_star, x)


def _forward(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats):
    # `_attach` again, so that a derivative of the gradient includes the equilibrium's derivative.
    value = _attach(
        partial(_linearized, f), adjoint, linearize_at, params, x, z_star, extra, backward_stats
    )
    point = value if linearize_at == "f_z_star" else _with_tangent_of(z_star, value)
    return value, (params, x, point, extra)


def _linearized(f, params, z, x):
    """f, written as for its linearisation, so that XLA evaluates it once for both."""
    return jax.vjp(f, params, z, x)[0]


def _backward(f, adjoint, linearize_at, saved, cotangent):
    params, x, point, extra = saved
    u, stats = adjoint(f, params, x, point, extra, cotangent)
    d_params, d_x = _pull_back(f, params, point, x, u)
    return d_params, d_x, None, None, varying_like(point, stats)


_attach.defvjp(_forward, _backward)


def _pull_back(f, params, z, x, u):
    """u^T (df/dparams, df/dx).

    XLA computes the linearisation at z once, for the adjoint solve and for this product. On GPUs
    the values that only this product needs do not stay in memory during the solve: they are
    computed again. For the same reason z is held in the one array that the solver holds.
    """
    if hardware.target().platform != "gpu":
        return jax.vjp(lambda params, x: f(params, z, x), params, x)[1](u)
    flat, unravel = ravel_batch(z)
    evaluate = save_only_contractions(lambda params, x, flat: f(params, unravel(flat), x))
    return jax.vjp(lambda params, x: evaluate(params, x, flat), params, x)[1](u)


def save_only_contractions(f: Callable) -> Callable:
    """`f`, whose linearisation keeps only convolutions, products, sums and named values.

    A value is named with `jax.ad_checkpoint.checkpoint_name`. Everything else is computed again,
    including the results of Pallas kernels.
    """
    saved = ("conv_general_dilated", "dot_general", "reduce_sum", "name")
    return jax.checkpoint(f, policy=lambda operation, *_, **__: operation.name in saved)


@jax.custom_vjp
def _with_tangent_of(z_star, value):
    """z*, with the derivative of `value` as its own."""
    return z_star


_with_tangent_of.defvjp(
    lambda z_star, value: (_with_tangent_of(z_star, value), None),
    lambda _, cotangent: (None, cotangent),
)


def first_order_only(tree: PyTree, gradient: str, instead: str) -> PyTree:
    """`tree`, in a backward pass that must not be differentiated again.

    Args:
        tree: any arrays of the backward pass.
        gradient: name of the gradient, for the message.
        instead: gradients that can be differentiated, for the message.

    Raises:
        NotImplementedError: the backward pass is differentiated.
    """
    return _barrier((gradient, instead), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _barrier(names, tree):
    return tree


def _refuse(names, tree):
    gradient, instead = names
    raise NotImplementedError(
        f"The {gradient!r} gradient cannot be differentiated again (as a gradient of a gradient "
        f"or a Hessian product does). Use {instead}."
    )


_barrier.defvjp(_refuse, lambda *_: ())
