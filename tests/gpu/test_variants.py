"""The original's figures in float32 on one GPU: plain, Pallas kernels, CUDA graphs, and both.

    JAX_PLATFORMS=cuda pytest -m gpu -n 8 tests/gpu

Everything is called twice: graphs of loops have failed in their second execution. Convolutions are
computed in float32 proper here, not in TF32. Where there is no GPU only the plain form is run,
and only by `pytest -m gpu`.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_tiny
from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.data.sets.cifar10 import MEAN, STD
from mdeq_jax.engine.state import build_optimizer, init_state
from mdeq_jax.engine.step import make_train_step
from mdeq_jax.implicit import jacobian_loss
from mdeq_jax.models import build_model
from mdeq_jax.runtime import devices
from mdeq_jax.solvers import anderson, broyden
from mdeq_jax.tasks import build_task
from mdeq_jax.tree import ravel_batch
from tests.helpers.networks import SMALL_MODELS, small_config
from tests.helpers.reference import Network, assert_close

pytestmark = pytest.mark.gpu

GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "xla_gpu_graph_min_graph_size": 1,
}
FAST = {"xla_gpu_autotune_level": 0}  # any algorithm will do here
VARIANTS = {
    "plain": (False, {}),
    "pallas": (True, {}),
    "graphs": (False, GRAPHS),
    "both": (True, GRAPHS),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    on_gpu = jax.default_backend() == "gpu"
    if request.param != "plain" and not on_gpu:
        pytest.skip("Pallas kernels and CUDA graphs need a GPU")
    precision = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    pallas, options = VARIANTS[request.param]
    yield pallas, (options | FAST if on_gpu else {})
    jax.config.update("jax_default_matmul_precision", precision)


def directory():
    own = os.environ.get("MDEQ_REFERENCE_DIR")
    path = Path(own) if own else Path(__file__).parents[3] / "shared" / "reference"
    if not path.exists():
        pytest.skip(f"the original's figures are not here ({path})")
    return path


def twice(function, options, *args):
    """`function` compiled with XLA's `options`, called twice: both results."""
    compiled = jax.jit(function).lower(*args).compile(compiler_options=options)
    return [jax.device_get(compiled(*args)) for _ in range(2)]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_original_figures(name, variant):
    """Cell, solver steps, equilibrium, exact gradient and Jacobian loss, to 1e-4."""
    pallas, options = variant
    path = directory()
    config = small_config(path, name)
    with config.unlocked():
        config.pallas = pallas
        for solver in (config.solver.forward, config.solver.backward):
            solver.tol, solver.max_steps = 3e-7, 300
    variables = convert_state_dict(load_torch_file(path / f"{name}.pkl"), config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), variables)
    model, reference = build_model(config), np.load(path / f"{name}.npz")
    network = Network(config, model, variables, reference, np.float32, 1e-4)

    def run(variables, images, loss_weights, z, z_star, probe):
        problem = model.fixed_point_problem(variables, images)
        first = model.fixed_point_problem(variables, images[:1])
        z0, unravel = ravel_batch(first.z0)

        def alone(z):
            return ravel_batch(first.evaluate(unravel(z)))[0]

        def loss(params):
            out = model.apply({**variables, "params": params}, images)
            return jnp.mean(out.logits * loss_weights), out.logits

        kernels = model.cell.spec.pallas
        return {
            "injection": problem.x.injection,
            "cell": problem.evaluate(z),
            "jacobian": jacobian_loss(problem, z=z_star, probe=probe),
            "broyden": broyden(alone, z0, max_steps=16, tol=0.0, pallas=kernels).rel_trace,
            "anderson": anderson(alone, z0, max_steps=15, tol=0.0, scale_lam=False).rel_trace,
            "solved": jax.value_and_grad(loss, has_aux=True)(variables["params"]),
        }

    images = network.array("x")
    states = (network.scales(kind) for kind in ("z", "z_star", "jac_v"))
    arguments = (variables, images, network.array("loss_weights"), *states)
    for result in twice(run, options, *arguments):
        network.assert_close(result["injection"], "injection")
        for i, z in enumerate(result["cell"]):
            network.assert_close(z, f"f_z{i}")
        network.assert_close(result["jacobian"], "jac_loss_for_v")
        # A trace magnifies rounding from step to step.
        steps = slice(0, 8)
        np.testing.assert_allclose(
            result["broyden"][steps, 0], reference["broyden_rel_trace"][steps], rtol=1e-3
        )
        np.testing.assert_allclose(
            result["anderson"][1:][steps, 0], reference["anderson_rel_trace"][steps], rtol=1e-3
        )
        (loss, logits), gradients = result["solved"]
        network.assert_close(logits, "logits")
        assert_close(loss, reference["loss"], 1e-4, "loss")
        network.assert_gradients_close(gradients, "grad/")


def test_original_training(variant):
    """The first equilibrium step of the original's training run, from its weights after step 5."""
    pallas, options = variant
    path = directory()
    trace = np.load(path / "mdeq_training_trace.npz")
    config = cifar10_tiny.get_config()
    with config.unlocked():
        config.pallas = pallas
        config.model.dropout, config.train.random_forward_delta = 0.0, 0
        config.train.learning_rate, config.train.weight_decay = 5e-4, 2.5e-3
        for solver in (config.solver.forward, config.solver.backward):
            solver.tol, solver.max_steps = 1e-6, 90
    state_dict = {k.removeprefix("step5/"): trace[k] for k in trace if k.startswith("step5/")}
    variables = convert_state_dict(state_dict, config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), variables)
    model, optimizer = build_model(config), build_optimizer(config.train, 40)
    state = init_state(model, optimizer, build_task(config), config).starting_from(variables)
    images = trace["x"][40:48].astype(np.float32) / 255
    batch = {
        "image": (images - np.float32(MEAN)) / np.float32(STD),
        "label": trace["y"][40:48].astype(np.int32),
    }
    step = devices.pmap(
        make_train_step(model, optimizer, build_task(config), config, 40), static_argnums=(3,)
    )
    arguments = devices.replicate(state), (), devices.to_devices(batch)
    compiled = step.lower(*arguments, False).compile(compiler_options=options)
    for _ in range(2):
        _, _, report = compiled(*arguments)
        loss = float(jax.device_get(report.scalars["loss"])[0])
        np.testing.assert_allclose(loss, trace["losses"][5], rtol=1e-4)
        assert (jax.device_get(report.per_sample["forward/rel_residual"]) < 1e-5).all()
