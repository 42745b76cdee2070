"""What a gradient keeps: independent of the number of solver steps, unlike unrolled autodiff."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp

from mdeq_jax.implicit import equilibrium
from mdeq_jax.implicit.attach import save_only_contractions
from mdeq_jax.models.mdeq.cell import CellInput, CellSpec, MDEQCell, apply_cell, make_masks
from mdeq_jax.solvers import broyden, fixed_point_iteration

BATCH, SIZE = 8, 2048
STATE_BYTES = BATCH * SIZE * 4


def cell(params, z, x):
    return jnp.tanh(params[None] * z + x)


def temporary_bytes(loss) -> int:
    """Memory that the compiled gradient of `loss(params)` needs besides inputs and outputs."""
    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(SIZE)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def implicit_loss(f_solver, params):
    x = jnp.ones((BATCH, SIZE))
    b_solver = partial(fixed_point_iteration, max_steps=10)
    z, _ = equilibrium(cell, params, x, jnp.zeros_like(x), f_solver=f_solver, b_solver=b_solver)
    return jnp.sum(z)


def unrolled_loss(steps, params):
    x = jnp.ones((BATCH, SIZE))
    z, _ = jax.lax.scan(lambda z, _: (cell(params, z, x), None), jnp.zeros_like(x), length=steps)
    return jnp.sum(z)


def test_fixed_point_iteration_needs_the_same_for_any_number_of_steps():
    few, many = (
        temporary_bytes(partial(implicit_loss, partial(fixed_point_iteration, max_steps=steps)))
        for steps in (10, 200)
    )
    # The two traces, [max_steps, B], are all that grows.
    assert many - few <= 4 * 190 * BATCH * 4
    assert many - few < STATE_BYTES
    few, many = (temporary_bytes(partial(unrolled_loss, steps)) for steps in (10, 200))
    assert many - few >= 190 * STATE_BYTES


def test_broyden_needs_one_state_a_step():
    few, many = (
        temporary_bytes(partial(implicit_loss, partial(broyden, max_steps=steps)))
        for steps in (10, 40)
    )
    assert 0.95 * 30 * STATE_BYTES <= many - few <= 1.15 * 30 * STATE_BYTES


def test_on_gpus_the_pullback_to_parameters_holds_one_array_a_convolution(as_on_gpu):
    """The shapes that the linearisation of a cell with dropout keeps, by their channels."""
    spec = CellSpec((4, 8), (1, 1), (0, 0), 5, 2, True, False, True, True, False, dropout=0.2)
    z = tuple(jnp.zeros((2, size, size, width)) for size, width in zip((8, 4), spec.channels))
    weights = MDEQCell(spec).init_with_output(jax.random.key(0))[0]
    masks = make_masks(jax.random.split(jax.random.key(1), 2), spec, z)
    x = CellInput(jnp.ones_like(z[0]), masks)

    def held(wrap):
        cell = wrap(lambda weights, x: apply_cell(spec, weights, z, x))
        pullback = jax.eval_shape(lambda *args: jax.vjp(cell, *args)[1], weights, x)
        shapes = [leaf.shape for leaf in jax.tree.leaves(pullback) if len(leaf.shape) == 4]
        return Counter(shape for shape in shapes if shape[0] == 2)

    everything, contractions = as_on_gpu(held, lambda f: f), as_on_gpu(held, save_only_contractions)
    assert contractions[2, 8, 8, 20] == contractions[2, 4, 4, 40] == 1 < everything[2, 8, 8, 20]
    # Mask, the sum that the second norm is taken of, what is upsampled, the post-fusion's.
    assert contractions[2, 8, 8, 4] <= 4 < everything[2, 8, 8, 4] / 2
    assert sum(contractions.values()) < sum(everything.values()) / 2
