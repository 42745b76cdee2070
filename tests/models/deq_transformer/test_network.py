"""Dropout masks, memory, the Jacobian loss and gradients of a DEQ-Transformer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import BackwardStats
from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.deq_transformer.build import build_deq_transformer, build_transformer
from tests.helpers.language import close, transformer_config

SMALL = {"n_token": 20, "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12}
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(4, 6) % 20
ONE_LAYER = ForwardOptions(pretraining_layers=2)


def small(**fields):
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    config = transformer_config(SMALL, fields)
    model = build_deq_transformer(config)
    return model, model.init(jax.random.key(0), TOKENS)


@pytest.mark.slow
def test_dropout_is_that_of_a_sample_wherever_it_is():
    rates = {"model__transformer__dropout": 0.3, "model__transformer__dropatt": 0.2}
    model, variables = small(**rates)
    rngs = {"dropout": jax.random.key(1)}
    whole = model.apply(variables, TOKENS, train=True, forward=ONE_LAYER, rngs=rngs)
    forward = ONE_LAYER._replace(first_sample=2)
    part = model.apply(variables, TOKENS[2:], train=True, forward=forward, rngs=rngs)
    np.testing.assert_allclose(part.logits.hidden, whole.logits.hidden[2:], rtol=1e-5, atol=1e-7)
    dropped = (whole.logits.hidden == 0).all(axis=2)
    assert 0 < dropped.sum() < dropped.size  # whole positions
    bare = model.apply(variables, TOKENS, forward=ONE_LAYER)
    assert not (bare.logits.hidden == 0).any()


def test_no_memory():
    model, variables = small(model__transformer__mem_len=0)
    out = model.apply(variables, TOKENS, memory=model.empty_memory(4))
    assert out.memory.z.shape == (4, 0, 8) and out.memory.filled.tolist() == [0] * 4


def test_memory_carries_no_gradient():
    model, variables = small()
    memory = model.apply(variables, TOKENS).memory

    def total(memory_z):
        moved = memory._replace(z=memory_z)
        out = model.apply(variables, TOKENS, memory=moved, train=True, forward=ONE_LAYER)
        return jnp.sum(jnp.sin(out.z_star)) + jnp.sum(out.memory.z)

    assert not jax.grad(total)(memory.z).any()


@pytest.mark.parametrize("gradient", ["ift", "phantom", "one_step", "unroll"])
def test_a_training_step_with_every_kind_of_gradient(gradient):
    model, variables = small(gradient__name=gradient, solver__forward__max_steps=12)
    rngs = {"jacobian": jax.random.key(2)}

    def loss(params, stats):
        forward = ForwardOptions(step_budget=8, backward_stats=stats, with_jacobian=True)
        out = model.apply({"params": params}, TOKENS, train=True, forward=forward, rngs=rngs)
        return jnp.mean(out.logits.nll(TOKENS)) + out.jacobian_loss, out.jacobian_loss

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, jacobian), (gradients, _) = step(variables["params"], BackwardStats.zeros(4))
    assert np.isfinite(value) and jacobian > 0
    chex.assert_tree_all_finite(gradients)


def test_a_network_without_an_equilibrium_has_no_jacobian_loss():
    config = transformer_config(SMALL, {"model.name": "transformer"})
    model = build_transformer(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)

    def loss(variables, asked):
        forward = ForwardOptions(with_jacobian=asked)
        rngs = {"jacobian": jax.random.key(2)}
        out = model.apply(variables, TOKENS, train=True, forward=forward, rngs=rngs)
        return jnp.float32(out.jacobian_loss)

    asked = jax.ShapeDtypeStruct((), bool)
    text = jax.jit(loss).lower(variables, asked).as_text()
    assert "dot_general" not in text and "constant dense<0.000000e+00>" in text


def test_bfloat16_stays_close():
    model, variables = small(solver__forward__tol=1e-3)
    low, _ = small(precision="bfloat16", solver__forward__tol=1e-3)
    a, b = (m.apply(variables, TOKENS, forward=ONE_LAYER) for m in (model, low))
    assert b.z_star.dtype == jnp.float32
    close(b.logits.nll(TOKENS), a.logits.nll(TOKENS), 2e-2)


@pytest.mark.parametrize(
    ("solver", "states"), [pytest.param("anderson", 0, marks=pytest.mark.slow), ("broyden", 1)]
)
def test_memory_of_a_step_grows_by_the_history_alone(solver, states):
    """The plan with more forward steps: Broyden's method keeps a state a step, Anderson's none."""
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    steps, state = (10, 60), 4 * 4 * 64 * 8

    def planned(max_steps):
        model, variables = small(solver__forward__name=solver, solver__forward__max_steps=max_steps)

        def loss(params, tokens):
            out = model.apply({"params": params}, tokens, train=True)
            return jnp.mean(out.logits.nll(tokens))

        plan = jax.jit(jax.grad(loss)).lower(variables["params"], tokens).compile()
        return plan.memory_analysis().temp_size_in_bytes

    growth = planned(steps[1]) - planned(steps[0])
    traces = 2 * 4 * 4 * (steps[1] - steps[0])  # of both residuals of four samples
    assert growth <= (steps[1] - steps[0]) * states * state * 1.15 + 4 * traces
