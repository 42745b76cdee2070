"""Every gradient against its definition on a network of the original, in float64 to 1e-8."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.implicit import ift, neumann, one_step, phantom, reversible, shine, unroll
from mdeq_jax.models import CellInput, apply_cell, build_model
from mdeq_jax.models.mdeq.cell import make_masks
from mdeq_jax.solvers import broyden
from mdeq_jax.tree import ravel_batch
from tests.helpers.cells import assert_trees_close

STEPS = 3
SOLVER = partial(broyden, max_steps=4, tol=0.0)  # gradients are defined wherever it ends


@pytest.fixture
def cell(reference_dir, x64):
    """The cell of the two-scale classifier on one sample: f, its weights, its input, its start."""
    settings = json.loads((reference_dir / "small_models.json").read_text())["cls_two_scales"]
    config = default.get_config()
    for field, setting in settings.items():
        if field in config.model:
            config.model[field] = tuple(setting) if isinstance(setting, list) else setting
    config.data.image_size = tuple(settings["input"][2:])
    variables = convert_state_dict(load_torch_file(reference_dir / "cls_two_scales.pkl"), config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), variables)
    images = np.load(reference_dir / "cls_two_scales.npz")["x"][1:2].transpose(0, 2, 3, 1)
    model = build_model(config)
    return model.fixed_point_problem(variables, images)


@pytest.mark.slow
@pytest.mark.parametrize("pallas", [False, True])
def test_the_cell_and_its_gradient_as_on_gpus(cell, pallas, as_on_gpu):
    """With dropout; as on CPUs they are compared with the original's figures elsewhere."""
    f, weights, x, z0 = cell
    spec = f.args[0]._replace(dropout=0.3, pallas=pallas)
    f = partial(apply_cell.__wrapped__, spec)  # traced anew each time
    masks = make_masks(jax.random.split(jax.random.key(0), 1), spec, z0)
    solver = partial(broyden, max_steps=40, tol=1e-11, pallas=pallas)
    flat0, unravel = ravel_batch(z0)

    def value_and_gradient(weights, injection):
        x = CellInput(injection, masks)
        found = solver(lambda z: ravel_batch(f(weights, unravel(z), x))[0], flat0)
        z_star, pullback = jax.vjp(
            lambda w, i: ift(f, w, CellInput(i, masks), unravel(found.z), b_solver=solver),
            weights,
            injection,
        )
        return z_star, pullback(jax.tree.map(jnp.cos, z_star))

    on_cpu = jax.jit(lambda *args: value_and_gradient(*args))(weights, x.injection)
    on_gpu = as_on_gpu(jax.jit(lambda *args: value_and_gradient(*args)), weights, x.injection)
    assert_trees_close(on_gpu, on_cpu, rtol=1e-8)


def mix(weight, old, new):
    return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, old, new)


def add(a, b):
    return jax.tree.map(jnp.add, a, b)


def scale(weight, a):
    return jax.tree.map(lambda a: weight * a, a)


def test_gradients_are_their_definitions(cell):
    """Ours, compiled together; the definitions, step by step from f and its pullback alone."""
    f, weights, x, z0 = cell
    flat0, unravel = ravel_batch(z0)
    g = unravel(jax.random.normal(jax.random.key(0), flat0.shape, jnp.float64))

    def flat(z):
        return ravel_batch(z)[0]

    @jax.jit
    def ours(weights, x):
        solution = SOLVER(lambda z: flat(f(weights, unravel(z), x)), flat0, keep_inverse=True)
        at_z_star = {
            "phantom": partial(phantom, steps=STEPS, tau=0.7),
            "neumann": partial(neumann, steps=STEPS, tau=0.7),
            "one_step": one_step,
            "shine": partial(shine, inverse=solution.inverse),
            "ift": partial(ift, b_solver=partial(broyden, max_steps=80, tol=1e-12)),
        }
        own = {
            "unroll": partial(unroll, steps=STEPS, tau=0.8),
            "reversible": partial(reversible, steps=STEPS, beta=0.6),
        }
        runs = {
            name: (lambda w, x, run=run: run(f, w, x, unravel(solution.z)))
            for name, run in at_z_star.items()
        }
        runs |= {name: (lambda w, x, run=run: run(f, w, x, z0)[0]) for name, run in own.items()}
        return solution, {name: jax.vjp(run, weights, x)[1](g) for name, run in runs.items()}

    solution, found = ours(weights, x)

    image = jax.jit(lambda z: f(weights, z, x))
    pull_back = jax.jit(lambda z, u: jax.vjp(f, weights, z, x)[1](u))
    z_star = unravel(solution.z)
    expected = {}

    # z <- (1 - w) z + w f(z), forwards and then backwards.
    for name, weight, z in (("phantom", 0.7, z_star), ("unroll", 0.8, z0)):
        states = []
        for _ in range(STEPS):
            states.append(z)
            z = mix(weight, z, image(z))
        total, d_z = None, g
        for z in reversed(states):
            d_weights, d_point, d_x = pull_back(z, scale(weight, d_z))
            total = (d_weights, d_x) if total is None else add(total, (d_weights, d_x))
            d_z = add(scale(1 - weight, d_z), d_point)
        expected[name] = total

    y = z = z0
    points = []  # where f is evaluated: z, y, z, y, ...
    for _ in range(STEPS):
        points += [z]
        y = mix(0.6, y, image(z))
        points += [y]
        z = mix(0.6, z, image(y))
    total, d_new, d_other = None, g, scale(0.0, g)  # of the state that f(point) went into
    for point in reversed(points):
        d_weights, d_point, d_x = pull_back(point, scale(0.6, d_new))
        total = (d_weights, d_x) if total is None else add(total, (d_weights, d_x))
        d_new, d_other = add(d_other, d_point), scale(0.4, d_new)
    expected["reversible"] = total

    def product(u):
        return flat(pull_back(z_star, unravel(u))[1])

    flat_g, series = flat(g), 0
    term = 0.7 * flat_g
    for _ in range(STEPS):
        series += term
        term = 0.3 * term + 0.7 * product(term)
    # H^T g from the pairs u_i, v_i = H_i^T D_i that the textbook form stores.
    steps, pairs = np.asarray(solution.inverse.steps[0]), []

    def transposed(y):
        return -y + sum(v * np.vdot(u, y) for u, v in pairs)

    for i in range(3):  # the fourth step was taken with three updates
        v = transposed(steps[i])
        pairs.append((steps[i + 1] / np.vdot(steps[i], steps[i]), v))
    adjoint = flat_g
    for _ in range(100):  # the spectral radius is 0.7
        adjoint = product(adjoint) + flat_g
    of_u = {
        "neumann": series,
        "one_step": flat_g,
        "shine": -transposed(np.asarray(flat_g[0]))[None],
        "ift": adjoint,
    }
    for name, u in of_u.items():
        expected[name] = pull_back(z_star, unravel(jnp.asarray(u)))[::2]

    assert found.keys() == expected.keys()
    for name in found:
        assert_trees_close(found[name], expected[name], rtol=1e-8)
