"""The Jacobian loss of the steps that apply it, with its gradient in the same branch."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mdeq_jax.implicit.jacobian import jacobian_loss
from mdeq_jax.implicit.problem import Cell, FixedPointProblem
from mdeq_jax.parallel import varying_like
from mdeq_jax.tree import PyTree


def optional_jacobian_loss(
    condition: bool | jax.Array, problem: FixedPointProblem, *, z: PyTree, key: jax.Array
) -> jax.Array:
    """`jacobian_loss` in float32 where the condition holds, else zero at no cost.

    Reverse mode computes its gradient where it computes its value. A branch that is differentiated
    instead hands all intermediate values to a second branch, as zeros if the condition is false:
    twice as much to compile, and kept during the adjoint solve.

    Args:
        condition: may be traced.
        problem: brings the cell, which must not close over traced values, its params and x.
        z: state; it gets no gradient.
        key: random key of the probe, or `[B]` keys, one per sample.
    """
    z, key = lax.stop_gradient((z, key))
    return _loss(problem.f, condition, (problem.params, problem.x), z, key)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(f: Cell, condition, inputs, z, key):
    return lax.cond(
        condition,
        lambda: _in_float32(f, inputs, z, key),
        lambda: varying_like(z, jnp.float32(0)),
    )


def _forward(f, condition, inputs, z, key):
    leaves, structure = jax.tree.flatten(inputs)
    floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    moving = [leaf for leaf, moves in zip(leaves, floating) if moves]

    def loss(moving):
        moved = iter(moving)
        all_leaves = [next(moved) if moves else leaf for leaf, moves in zip(leaves, floating)]
        return _in_float32(f, structure.unflatten(all_leaves), z, key)

    loss_and_gradient = lax.cond(
        condition,
        lambda: jax.value_and_grad(loss)(moving),
        lambda: varying_like((z, inputs), (jnp.float32(0), [jnp.zeros_like(x) for x in moving])),
    )
    value, gradients = loss_and_gradient
    taken = iter(gradients)
    return value, structure.unflatten([next(taken) if moves else None for moves in floating])


def _backward(f, gradients, cotangent):
    del f
    scaled = jax.tree.map(lambda x: (cotangent * x).astype(x.dtype), gradients)
    return None, scaled, None, None


_loss.defvjp(_forward, _backward)


def _in_float32(f, inputs, z, key):
    params, x = inputs
    return jacobian_loss(f, params, x, z, key=key).astype(jnp.float32)
