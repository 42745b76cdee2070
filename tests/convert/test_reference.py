"""The original's figures with converted weights: float64 to 1e-6, float32 to 1e-4.

The quick suite compares every figure of the two-scale network. It compares the four-scale networks
without their solves, which take longest to compile and run; `-m slow` compares those too.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.implicit import jacobian_loss, spectral_radius
from mdeq_jax.models import build_model
from mdeq_jax.solvers import anderson, broyden
from mdeq_jax.tree import ravel_batch
from tests.helpers.networks import SMALL_MODELS, small_config
from tests.helpers.reference import Network, assert_close

# Type, tolerance of the comparison, and of the solvers.
PRECISIONS = {"float64": (np.float64, 1e-6, 1e-13), "float32": (np.float32, 1e-4, 3e-7)}


SLOW_FOUR_SCALES = [
    name if name == "cls_two_scales" else pytest.param(name, marks=pytest.mark.slow)
    for name in SMALL_MODELS
]
# Of a test whose four-scale networks are slow.
slow_four_scales = pytest.mark.parametrize(
    "network", SLOW_FOUR_SCALES, indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def precision(request):
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield PRECISIONS[request.param]
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module", params=SMALL_MODELS)
def network(request, precision, reference_dir):
    dtype, tol, solver_tol = precision
    config = small_config(reference_dir, request.param)
    for solver in (config.solver.forward, config.solver.backward):
        solver.tol = solver_tol
        solver.max_steps = 400  # one sample of the four-scale classifier takes over 200
    state_dict = load_torch_file(reference_dir / f"{request.param}.pkl")
    variables = convert_state_dict(state_dict, config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, dtype), variables)
    reference = np.load(reference_dir / f"{request.param}.npz")
    return Network(config, build_model(config), variables, reference, dtype, tol)


@pytest.fixture(scope="module")
def pieces(network):
    """Injection, one application of the cell and the Jacobian figure, in one compilation."""

    @jax.jit
    def run(variables, images, z, z_star, probe):
        problem = network.model.fixed_point_problem(variables, images)
        loss = jacobian_loss(problem, z=z_star, probe=probe)
        return problem.x.injection, problem.evaluate(z), loss

    states = (network.scales(name) for name in ("z", "z_star", "jac_v"))
    return run(network.variables, network.array("x"), *states)


@pytest.fixture(scope="module")
def solved(network):
    """Output and gradients of the reference's loss at the equilibrium, solved from zero."""
    x, loss_weights = network.array("x"), network.array("loss_weights")

    @jax.jit
    def run(params):
        def loss(params):
            out = network.model.apply({**network.variables, "params": params}, x)
            return jnp.mean(out.logits * loss_weights), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(network.variables["params"])


@pytest.fixture(scope="module")
def unrolled(network):
    """Logits and gradients of three plain applications of the cell."""
    x, loss_weights = network.array("x"), network.array("loss_weights")

    @jax.jit
    def run(params):
        def loss(params):
            variables = {**network.variables, "params": params}
            logits = network.model.apply(variables, x, plain_layers=3).logits
            return jnp.mean(logits * loss_weights), logits

        return jax.grad(loss, has_aux=True)(params)

    return run(network.variables["params"])


def test_stem_and_injection(network, pieces):
    network.assert_close(pieces[0], "injection")


def test_one_application_of_the_cell(network, pieces):
    for i, z in enumerate(pieces[1]):
        network.assert_close(z, f"f_z{i}")


def test_jacobian_figure(network, pieces):
    network.assert_close(pieces[2], "jac_loss_for_v")


@slow_four_scales
def test_spectral_radius(network):
    """Equal if the power iteration converges; otherwise in the range that the original's may take.

    The original reports the Rayleigh quotient of the last of 400 vectors. Its random start matters
    only if a complex pair of eigenvalues dominates. The vector then keeps turning in a plane, and
    the quotient takes every value between the eigenvalues of the symmetric part of J on that plane.
    """

    @jax.jit
    def run(variables, images, z_star):
        problem = network.model.fixed_point_problem(variables, images)
        result = spectral_radius(problem, z=z_star, key=jax.random.key(0), num_steps=400)
        flat, unravel = ravel_batch(z_star)
        pullback = jax.vjp(lambda z: ravel_batch(problem.evaluate(unravel(z)))[0], flat)[1]
        one, image = result.vector, pullback(result.vector)[0]
        other = image - jnp.sum(image * one, axis=1, keepdims=True) * one
        other /= jnp.linalg.norm(other, axis=1, keepdims=True)
        basis = jnp.stack([one, other], axis=1)  # [B, 2, D]
        images = jnp.stack([image, pullback(other)[0]], axis=1)
        return result, jnp.einsum("bid,bjd->bij", images, basis)

    x, z_star = network.array("x"), network.scales("z_star")
    result, on_plane = jax.tree.map(np.asarray, run(network.variables, x, z_star))
    expected = network.reference["spectral_radius_power400"].ravel()
    converged = result.residual < 1e-4
    for estimate in (result.radius, result.growth):
        np.testing.assert_allclose(estimate[converged], expected[converged], rtol=network.tol)
    turning = on_plane[~converged]
    ends = np.linalg.eigvalsh((turning + turning.transpose(0, 2, 1)) / 2)  # [.., 2]
    largest, smallest = np.abs(ends).max(axis=1), np.abs(ends).min(axis=1)
    smallest[np.sign(ends).sum(axis=1) == 0] = 0  # it takes absolute values
    slack = 0.02 * result.growth[~converged]  # a third eigenvalue may still be fading
    assert (expected[~converged] <= largest + slack).all()
    assert (expected[~converged] >= smallest - slack).all()
    if network.config.model.name == "mdeq_classifier":  # the segmenter's pair is nearly imaginary
        np.testing.assert_allclose(result.growth, expected, rtol=0.06)


@slow_four_scales
def test_logits_at_equilibrium(network, solved):
    (loss, out), _ = solved
    network.assert_close(out.logits, "logits")
    for i, z in enumerate(out.z_star):
        network.assert_close(z, f"z_star{i}")
    assert_close(loss, network.reference["loss"], network.tol, "loss")
    assert out.solution.rel_residual.max() < (1e-12 if network.dtype == np.float64 else 1e-6)


@slow_four_scales
def test_implicit_gradients(network, solved):
    network.assert_gradients_close(solved[1], "grad/")


@slow_four_scales
def test_unrolled_logits_and_gradients(network, unrolled):
    gradients, logits = unrolled
    network.assert_close(logits, "unrolled3_logits")
    network.assert_gradients_close(gradients, "unrolled3_grad/")


@slow_four_scales
@pytest.mark.parametrize("name", ["broyden", "anderson"])
def test_solver_traces(network, name):
    """Step by step on the first sample alone; the original's Anderson trace starts a step later."""
    if network.dtype != np.float64:
        pytest.skip("the traces are compared in float64")
    images = network.array("x")[:1]
    solver, skipped = partial(broyden, max_steps=16), 0
    if name == "anderson":
        solver, skipped = partial(anderson, max_steps=15, scale_lam=False), 1

    @jax.jit
    def solve(variables, images):
        problem = network.model.fixed_point_problem(variables, images)
        z0, unravel = ravel_batch(problem.z0)
        solution = solver(lambda z: ravel_batch(problem.evaluate(unravel(z)))[0], z0, tol=0.0)
        return solution, unravel(solution.z)

    solution, result = solve(network.variables, images)
    for kind, trace in (("rel", solution.rel_trace), ("abs", solution.abs_trace)):
        expected = network.reference[f"{name}_{kind}_trace"]
        np.testing.assert_allclose(trace[skipped:, 0], expected, rtol=1e-5)
    for i, z in enumerate(result):
        network.assert_close(z, f"{name}_result_z{i}", tol=1e-5)
