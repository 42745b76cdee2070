import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.test_util import check_grads

from mdeq_jax import hardware
from mdeq_jax.models import build_model
from mdeq_jax.solvers import Status
from tests.helpers.jaxprs import primitives


def build(config, batch=2):
    model = build_model(config)
    images = jax.random.normal(jax.random.key(1), (batch, *config.data.image_size, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, calm(variables), images


def calm(variables):
    """Smaller scales and random biases in the cell's norms.

    A freshly initialised cell has a spectral radius of about 2, and no equilibrium that a solver
    finds; this one's is about 0.6.
    """
    flat = flatten_dict(variables)
    for n, (path, value) in enumerate(sorted(flat.items())):
        if path[1] == "cell" and path[-1] == "scale":
            flat[path] = 0.6 * value
        elif path[1] == "cell" and path[-1] == "bias":
            flat[path] = jax.random.normal(jax.random.key(n), value.shape, value.dtype)
    return unflatten_dict(flat)


def to_float64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def test_forward(small_config):
    model, variables, images = build(small_config)
    out = jax.jit(model.apply)(variables, images)
    assert out.logits.shape == (2, 10) and out.logits.dtype == jnp.float32
    assert [z.shape for z in out.z_star] == [(2, 8, 8, 8), (2, 4, 4, 8)]
    assert out.solution.rel_trace.shape == (18, 2)
    assert (out.solution.rel_residual < 0.01).all()


def test_segmenter(small_config):
    small_config.model.name = "mdeq_segmenter"
    small_config.model.downsample_times = 2
    small_config.model.num_classes = 5
    small_config.data.image_size = (16, 24)
    model, variables, images = build(small_config)
    out = jax.jit(model.apply)(variables, images)
    assert out.logits.shape == (2, 4, 6, 5)


def test_one_resolution_is_its_blocks_alone(small_config):
    for field in ("channels", "num_blocks", "big_kernels", "head_channels"):
        small_config.model[field] = small_config.model[field][:1]
    model, variables, images = build(small_config)
    assert set(variables["params"]["cell"]) == {"branch0_block0"}
    assert jax.jit(model.apply)(variables, images).logits.shape == (2, 10)


def test_big_kernels_count_in_every_block(small_config):
    small_config.model.num_blocks, small_config.model.big_kernels = (2, 2), (1, 2)
    model = build_model(small_config)
    images = jnp.zeros((1, *small_config.data.image_size, 3))
    cell = jax.eval_shape(model.init, jax.random.key(0), images)["params"]["cell"]
    for i, sizes in enumerate(([5, 3], [5, 5])):
        for block in (cell[f"branch{i}_block{b}"] for b in range(2)):
            assert [block[f"conv{n}"]["v"].shape[0] for n in (1, 2)] == sizes


def test_more_big_kernels_than_a_block_has_are_refused(small_config):
    small_config.model.big_kernels = (1, 3)
    with pytest.raises(ValueError, match=r"model.big_kernels must be 0, 1 or 2.*\(1, 3\)"):
        build_model(small_config)


def test_samples_do_not_influence_each_other(small_config, x64):
    model, variables, images = build(small_config)
    variables, images = to_float64((variables, images))
    apply = jax.jit(model.apply)
    together = apply(variables, images).logits
    for i in range(2):
        alone = apply(variables, jnp.stack([images[i]] * 2)).logits[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-9)


def test_plain_layers_are_applications_of_the_cell(small_config):
    model, variables, images = build(small_config)

    @jax.jit
    def both(variables, images):
        problem = model.fixed_point_problem(variables, images)
        z = problem.z0
        for _ in range(3):
            z = problem.evaluate(z)
        return model.apply(variables, images, plain_layers=3), z

    out, z = both(variables, images)
    assert out.solution is None
    chex.assert_trees_all_close(out.z_star, z, rtol=1e-7, atol=1e-4)


def test_step_budget_and_start(small_config):
    model, variables, images = build(small_config)
    apply = jax.jit(lambda n, z0: model.apply(variables, images, step_budget=n, z0=z0))
    shapes = jax.eval_shape(lambda: model.fixed_point_problem(variables, images).z0)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    few = apply(3, zero)
    assert few.solution.nfe == 4
    again = apply(3, few.z_star)
    assert (again.solution.rel_residual < few.solution.rel_residual).all()


def test_dropout_is_one_mask_a_pass(small_config):
    small_config.model.dropout = 0.4
    model, variables, images = build(small_config)

    @jax.jit
    def train(key, layers_of_key):
        return model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": key, "jacobian": key},
            mutable=["batch_stats"],
        )[0]

    first, same = train(jax.random.key(0), 0), train(jax.random.key(0), 0)
    other = train(jax.random.key(1), 0)
    np.testing.assert_array_equal(first.logits, same.logits)
    assert jnp.abs(first.logits - other.logits).max() > 0
    # Only with the mask held fixed is there an equilibrium to come near to.
    assert (first.solution.rel_residual < 0.01).all()


def test_bfloat16_computes_in_bfloat16_and_solves_in_float32(small_config):
    model, variables, images = build(small_config)
    expected = jax.jit(model.apply)(variables, images)
    small_config.precision = "bfloat16"
    half = build_model(small_config)
    out = jax.jit(half.apply)(variables, images)
    wide = out.logits, out.solution.z, out.z_star, variables
    chex.assert_type(jax.tree.leaves(wide), jnp.float32)
    injection = jax.eval_shape(lambda: half.fixed_point_problem(variables, images).x.injection)
    assert injection.dtype == jnp.bfloat16
    assert 0 < jnp.abs(out.logits - expected.logits).max() < 0.2


@pytest.fixture
def exact(small_config, x64):
    """A small MDEQ in float64 solved to rounding: model, variables, images, direction, loss.

    The loss of parameters and images also returns the status of the forward solve.
    """
    for solver in (small_config.solver.forward, small_config.solver.backward):
        solver.max_steps, solver.tol = 120, 1e-13
    model, variables, images = build(small_config)
    variables, images = to_float64((variables, images))
    direction = jax.random.normal(jax.random.key(2), (2, 10))

    def loss(params, images):
        out = model.apply({**variables, "params": params}, images)
        return jnp.sum(out.logits * direction), out.solution.status

    return model, variables, images, direction, loss


@pytest.mark.slow
def test_whole_model_against_unrolled_autodiff(exact):
    model, variables, images, direction, loss = exact

    def unrolled(params, images):
        bound = {**variables, "params": params}
        problem = model.fixed_point_problem(bound, images)

        def layer(z, _):
            return problem.evaluate(z), None

        z, _ = jax.lax.scan(layer, problem.z0, length=100)
        return jnp.sum(model.apply(bound, z, method="read_out") * direction)

    @jax.jit
    def both(params, images):
        implicit, status = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
        return implicit, jax.grad(unrolled, argnums=(0, 1))(params, images), status

    implicit, expected, status = both(variables["params"], images)
    assert (status == Status.CONVERGED).all()
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(implicit, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.slow
def test_whole_model_check_grads(exact):
    _, variables, images, _, loss = exact
    value = jax.jit(lambda *args: loss(*args)[0])
    check_grads(value, (variables["params"], images), 1, modes=["rev"], eps=1e-7)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 9, 8, 3), r"multiples of 2 .*; got 9x8"),
        ((2, 8, 8, 1), r"shape \[batch, height, width, 3\]; got \(2, 8, 8, 1\)"),
    ],
)
def test_bad_images(small_config, shape, message):
    model, variables, _ = build(small_config)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, jnp.zeros(shape))


def test_every_norm_of_a_cell_is_a_pallas_kernel(small_config):
    """Three a block, one a convolution of the fusion, one a resolution after it."""
    small_config.pallas = True
    model = build_model(small_config)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def evaluate(variables, images):
        problem = model.fixed_point_problem(variables, images)
        return problem.evaluate(problem.z0)

    with hardware.compiling_for("gpu", interpret=True):
        found = primitives(evaluate, variables, images)
    assert found["pallas_call"] == 2 * 3 + 2 + 2
