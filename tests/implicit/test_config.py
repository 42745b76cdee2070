"""Gradients chosen by name in a config: built, traced in the model under pmap, and refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.implicit import GRADIENTS, BackwardStats, reversible, unroll
from mdeq_jax.models import ForwardOptions, build_model
from tests.helpers.cells import BATCH, assert_trees_close, loss, problem, tanh_cell

# Each setting of each gradient, at another value than its default.
SETTINGS = {
    "ift": {"linearize_at": "f_z_star", "unconverged": "cap"},
    "phantom": {"steps": 3, "tau": 0.8},
    "neumann": {"steps": 3, "tau": 0.8},
    "one_step": {},
    "shine": {"refine_steps": 2, "unconverged": "damped"},
    "reversible": {"steps": 4, "beta": 0.4},
    "unroll": {"steps": 4, "tau": 0.8, "remat": True},
}


@pytest.fixture(scope="module")
def variables():
    """Shapes of the variables of the config's network, which do not depend on the gradient."""
    images = jnp.zeros((2, 8, 8, 3))
    shapes = jax.eval_shape(build_model(small()).init, jax.random.key(0), images)
    statistics = jax.tree.map(lambda a: np.ones(a.shape, np.float32), shapes["batch_stats"])
    return {**shapes, "batch_stats": statistics}


@pytest.fixture
def config():
    return small()


def small():
    config = default.get_config()
    config.model.channels = (8, 8)
    config.model.num_groups = 4
    config.model.expansion = 2
    config.model.head_channels = (2, 4)
    config.model.final_channels = 16
    config.data.image_size = (8, 8)
    return config


@pytest.mark.parametrize("name", GRADIENTS)
def test_in_the_model_under_pmap(name, config, variables):
    """Traced only: the values are compared elsewhere, and compiling takes its time."""
    config.gradient.name = name
    for field, setting in SETTINGS[name].items():
        config.gradient[field] = setting
    model = build_model(config)
    bound = model.gradient.keywords
    assert {field: bound[field] for field in SETTINGS[name]} == SETTINGS[name]
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

    def step(params, images, budget):
        def of(params, stats):
            out = model.apply(
                {**variables, "params": params},
                images,
                forward=ForwardOptions(step_budget=budget, backward_stats=stats),
            )
            return jnp.sum(out.logits), out.solution

        return jax.grad(of, argnums=(0, 1), has_aux=True)(params, BackwardStats.zeros(2))

    stacked = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), (variables["params"], images)
    )
    budget = jax.ShapeDtypeStruct((), jnp.int32)
    mapped = jax.pmap(step, axis_name="batch", in_axes=(0, 0, None))
    (gradients, stats), solution = jax.eval_shape(mapped, *stacked, budget)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
    assert stats.rel_residual.shape == (1, 2) and solution.inverse == ()


def test_pmap_computes_what_one_device_does(x64):
    params, x = problem()
    gradients = [
        name if name in ("ift", "shine") else partial(GRADIENTS[name].function, **SETTINGS[name])
        for name in SETTINGS
    ]

    def all_of(params, x):
        return [jax.grad(partial(loss, tanh_cell, gradient=g))(params, x) for g in gradients]

    ours = jax.pmap(all_of, in_axes=(None, 0))(params, x[None])
    alone = jax.jit(all_of)(params, x)
    assert_trees_close(jax.tree.map(lambda a: a[0], ours), alone, rtol=1e-10)


def test_steps_of_unroll_and_reversible_are_the_forward_solvers(config):
    config.solver.forward.max_steps = 7
    for gradient in (unroll, reversible):
        config.gradient.name = gradient.__name__
        assert build_model(config).gradient.keywords == {
            "steps": 7,
            "tol": config.solver.forward.tol,
            "stop_mode": "rel",
        }


REFUSED = [
    ({"name": "unroll", "steps": 19}, r"gradient.steps=19 is above solver.forward.max_steps=18"),
    ({"name": "unroll", "beta": 0.5}, r"gradient.beta=0.5 has no effect on 'unroll'"),
    ({"name": "reversible", "beta": 1.0}, r"gradient: beta, the relaxation, must be in \(0, 2\)"),
    ({"name": "reversible", "remat": True}, r"gradient.remat=True has no effect on 'reversible'"),
    ({"name": "shine", "refine_steps": -1}, r"gradient: refine_steps must not be negative"),
    ({"name": "ift", "refine_steps": 2}, r"gradient.refine_steps=2 has no effect on 'ift'"),
    ({"name": "ift", "unconverged": "drop"}, r"gradient: unconverged must be one of .*'drop'"),
    ({"name": "shine", "unconverged": "cap"}, r"unconverged='cap' has no effect on an estimate"),
    ({"name": "neumann", "unconverged": "cap"}, r"unconverged='cap' has no effect on 'neumann'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_refused_before_compilation(settings, message, config):
    config.gradient.update(settings)
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_shine_without_broyden_is_refused(config):
    config.gradient.name = "shine"
    config.solver.forward.name = "anderson"
    with pytest.raises(ValueError, match=r"gradient.name='shine' .*solver.forward.name='anderson'"):
        build_model(config)


def test_every_gradient_is_covered():
    assert SETTINGS.keys() == GRADIENTS.keys()
    assert BATCH == np.shape(problem()[1])[0]
