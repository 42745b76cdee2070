"""Giving an equilibrium a gradient that its solver does not have."""

from collections.abc import Callable
from functools import partial

import jax

from mdeq_jax import hardware
from mdeq_jax.implicit.adjoint import BackwardStats
from mdeq_jax.implicit.problem import Cell
from mdeq_jax.tree import PyTree, ravel_batch

LINEARIZE_AT = ("z_star", "f_z_star")

# (f, params, x, z, extra, dloss/dz) -> (u, how it went): what stands for the adjoint equation's
# solution at the state z.
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
    """f(params, z*, x), with `adjoint` to turn dloss/dz into u in the backward pass.

    Only (params, x, z*) and `extra` are kept for the backward pass. It is differentiable in turn
    where `adjoint` is.

    Args:
        f: cell, `f(params, z, x) -> z`; must not close over values that are being differentiated.
        params: parameters of the cell.
        x: input injection.
        z_star: equilibrium, leaves `[B, ...]`; it gets no gradient.
        backward_stats: see `BackwardStats`.
        adjoint: see `Adjoint`; must not close over arrays.
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
    return _attach(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attach(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats):
    return f(params, z_star, x)


def _forward(f, adjoint, linearize_at, params, x, z_star, extra, backward_stats):
    # By `_attach` again, so that a derivative of the gradient sees how the equilibrium moves.
    value = _attach(
        partial(_linearized, f), adjoint, linearize_at, params, x, z_star, extra, backward_stats
    )
    point = value if linearize_at == "f_z_star" else _moving_with(z_star, value)
    return value, (params, x, point, extra)


def _linearized(f, params, z, x):
    """f, written as it is where it is linearised, so that XLA evaluates it once for both."""
    return jax.vjp(f, params, z, x)[0]


def _backward(f, adjoint, linearize_at, saved, cotangent):
    params, x, point, extra = saved
    u, stats = adjoint(f, params, x, point, extra, cotangent)
    d_params, d_x = _pull_back(f, params, point, x, u)
    return d_params, d_x, None, None, stats


_attach.defvjp(_forward, _backward)


def _pull_back(f, params, z, x, u):
    """u^T (df/dparams, df/dx), on GPUs without what would wait in memory for the adjoint solve.

    XLA computes the linearisation at z once, for that solve and for this. What only this needs is
    computed again, and z is held in one array, as it is anyway.
    """
    if hardware.target().platform != "gpu":
        return jax.vjp(lambda params, x: f(params, z, x), params, x)[1](u)
    flat, unravel = ravel_batch(z)
    evaluate = frugal(lambda params, x, flat: f(params, unravel(flat), x))
    return jax.vjp(lambda params, x: evaluate(params, x, flat), params, x)[1](u)


def frugal(f: Callable) -> Callable:
    """`f`, whose linearisation holds convolutions, products, sums and what has a name.

    The name is one given by `jax.ad_checkpoint.checkpoint_name`. All else is computed again, what
    kernels of our own compute too.
    """
    held = ("conv_general_dilated", "dot_general", "reduce_sum", "name")
    return jax.checkpoint(f, policy=lambda operation, *_, **__: operation.name in held)


@jax.custom_vjp
def _moving_with(z_star, value):
    """z*, with the derivative of `value`."""
    return z_star


_moving_with.defvjp(
    lambda z_star, value: (_moving_with(z_star, value), None),
    lambda _, cotangent: (None, cotangent),
)


def first_order_only(tree: PyTree, gradient: str, instead: str) -> PyTree:
    """`tree`, in a backward pass that must not be differentiated again.

    Raises:
        NotImplementedError: when it is.
    """
    return _barrier((gradient, instead), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _barrier(names, tree):
    return tree


def _refuse(names, tree):
    gradient, instead = names
    raise NotImplementedError(
        f"A derivative of the {gradient!r} gradient was asked for (a gradient of a gradient, a "
        f"Hessian product), which it does not have. Use {instead}."
    )


_barrier.defvjp(_refuse, lambda *_: None)
