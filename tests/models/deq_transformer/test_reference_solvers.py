"""Solver traces and the Jacobian against what the original computed.

The original mixes and updates each sample separately, as this project does, but takes its norms
over the whole batch. So the iterates of a batch are those of its samples, and its joint residuals
follow from theirs, until the joint rule stops all samples at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.implicit import jacobian_loss
from mdeq_jax.models import ForwardOptions
from mdeq_jax.solvers import anderson, broyden
from mdeq_jax.tree import ravel_batch
from tests.helpers.language import assert_gradients, close

STEPS = 20  # the original's `threshold`
# Solver, the step that entry 0 of the original's trace is of, and what its relative residual adds.
SOLVERS = {
    "broyden": (partial(broyden, max_steps=STEPS), 1, 1e-9),
    # It counts evaluations of f, and starts its trace after the first two.
    "anderson": (partial(anderson, max_steps=STEPS - 1, scale_lam=False), 2, 1e-5),
}


@pytest.fixture
def arrays(reference_dir, x64):
    return dict(np.load(reference_dir / "deq_transformer" / "solvers_and_jacobian.npz"))


def problem_of(reference, samples=slice(None)):
    tokens = reference.segment(0)[0][samples]
    return reference.model.fixed_point_problem(reference.variables, tokens)


def joint(solution, eps):
    """Absolute and relative residuals of all samples together, from those of each."""
    absolute, relative = np.asarray(solution.abs_trace), np.asarray(solution.rel_trace)
    sizes = absolute / relative
    absolute, sizes = (np.sqrt(np.sum(np.square(x), axis=1)) for x in (absolute, sizes))
    return {"abs": absolute, "rel": absolute / (sizes + eps)}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("samples", ["sample0", "batch"])
@pytest.mark.parametrize("name", ["post_norm_plain", "pre_norm_adaptive"])
def test_solver_traces(arrays, load, name, samples, solver):
    problem = problem_of(load(name), slice(1) if samples == "sample0" else slice(None))
    flat, _ = ravel_batch(problem.z0)
    run, first, eps = SOLVERS[solver]

    @jax.jit
    def solve(budget):
        return run(
            lambda z: ravel_batch(problem.evaluate(problem.unravel(z)))[0],
            flat,
            tol=0.0,
            step_budget=budget,
        )

    solution = solve(STEPS)
    traces = joint(solution, eps)
    for key in [k for k in arrays if k.startswith(f"solver/{name}/{samples}/{solver}/")]:
        if not key.endswith("/nstep"):
            continue
        case, nstep = key.removesuffix("/nstep"), int(arrays[key])
        mode = case.rsplit("/", 1)[1]
        for kind, trace in traces.items():
            own = trace[first - 1 : nstep]  # the original pads what follows
            expected = arrays[f"{case}/{kind}_trace"][: len(own)]
            np.testing.assert_allclose(own, expected, rtol=1e-6, err_msg=f"{case} {kind}")
        # The first step with the lowest joint residual; each sample's own best may be another.
        best = first + int(np.argmin(traces[mode][first - 1 : nstep]))
        np.testing.assert_allclose(traces[mode][best - 1], arrays[f"{case}/lowest"], rtol=1e-6)
        stopped = solve(best)
        at_best = np.asarray(stopped.steps) == best
        result = np.asarray(problem.unravel(stopped.z).swapaxes(1, 2))
        if samples == "sample0":
            assert at_best.all()
        for i in np.flatnonzero(at_best):
            close(result[i], arrays[f"{case}/result"][i], 1e-6, case)


@pytest.mark.parametrize("name", ["post_norm_plain", "pre_norm_adaptive"])
def test_a_solve_stops_where_the_originals_does(arrays, load, name):
    """One sample alone, with a tolerance: the steps and the state."""
    problem = problem_of(load(name), slice(1))
    flat, _ = ravel_batch(problem.z0)
    for mode in ("rel", "abs"):
        case = f"solver/{name}/sample0/broyden/eps1e-3/{mode}"
        solution = broyden(
            lambda z: ravel_batch(problem.evaluate(problem.unravel(z)))[0],
            flat,
            max_steps=STEPS,
            tol=1e-3,
            stop_mode=mode,
        )
        assert int(solution.steps[0]) == arrays[f"{case}/nstep"]
        close(problem.unravel(solution.z).swapaxes(1, 2), arrays[f"{case}/result"], 1e-6, case)


@pytest.fixture(params=["post_norm_adaptive", "pre_norm_adaptive"])
def jacobian(request, arrays, load):
    """A model, the arrays under its name, and its problem at the given equilibrium."""
    prefix = f"jacobian/{request.param}/"
    own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    reference = load(request.param)
    z = jnp.asarray(own["z"]).swapaxes(1, 2)
    return reference, own, problem_of(reference)._replace(z0=z)


def probe(own, name):
    return jnp.asarray(own[name]).swapaxes(1, 2)


def test_jacobian_loss(jacobian):
    _, own, problem = jacobian
    product = jax.vjp(problem.evaluate, problem.z0)[1](probe(own, "probe0"))[0]
    close(product.swapaxes(1, 2), own["vector_jacobian_product_probe0"], 1e-6)
    losses = [jacobian_loss(problem, probe=probe(own, f"probe{i}")) for i in range(2)]
    close(losses[0], own["loss_one_probe"], 1e-6)
    close(sum(losses) / 2, own["loss_two_probes"], 1e-6)


def test_gradient_of_the_jacobian_loss(jacobian):
    """With u and z fixed; and with respect to z, which `jacobian_loss` holds constant."""
    reference, own, problem = jacobian
    injection = problem.x.injection

    @jax.jit
    def gradients(params, z):
        def loss(params, z):
            tokens = reference.segment(0)[0]
            moved, _ = reference.model.apply({"params": params}, tokens, method="problem")
            x = moved.x._replace(injection=injection)
            product = jax.vjp(lambda z: moved.f(moved.params, z, x), z)[1](probe(own, "probe0"))
            return jnp.sum(jnp.square(product[0])) / z.size

        return jax.grad(loss, argnums=(0, 1))(params, z)

    d_params, d_z = gradients(reference.variables["params"], problem.z0)
    close(d_z.swapaxes(1, 2), own["grad_of_loss_one_probe_wrt_z"], 1e-6)
    assert_gradients(reference.config, d_params, own, "grad_of_loss_one_probe/", 1e-6)


def test_objective_with_the_jacobian_loss(jacobian):
    """As in training: the mean NLL and twice the Jacobian loss, through parameters and u."""
    reference, own, _ = jacobian
    tokens, targets = reference.segment(0)

    @jax.jit
    def objective(params):
        variables = {"params": params}
        out = reference.model.apply(variables, tokens, train=True, forward=ForwardOptions())
        problem, _ = reference.model.apply(variables, tokens, method="problem")
        z = problem.unravel(out.solution.z)
        penalty = jacobian_loss(problem, z=z, probe=probe(own, "probe0"))
        return jnp.mean(out.logits.nll(targets)) + own["objective_jac_weight"] * penalty

    value, gradients = jax.value_and_grad(objective)(reference.variables["params"])
    close(value, own["objective"], 1e-6)
    assert_gradients(reference.config, gradients, own, "objective_grad/", 1e-6)


def test_the_exact_jacobian(jacobian):
    """Its norm, its largest eigenvalues, and power iteration on its transpose."""
    _, own, problem = jacobian
    flat, _ = ravel_batch(problem.z0)
    batch, size = flat.shape

    @jax.jit
    def pull_back(v):
        state = jax.vjp(problem.evaluate, problem.z0)[1](problem.unravel(v))[0]
        return ravel_batch(state)[0]

    rows = [pull_back(jnp.tile(row, (batch, 1))) for row in jnp.eye(size)]
    matrices = np.stack(rows, axis=1)  # [B, D, D]
    frobenius = np.sum(np.square(matrices)) / flat.size
    close(frobenius, own["exact_frobenius_squared_over_numel"], 1e-6)
    moduli = np.sort(np.abs(np.linalg.eigvals(matrices)), axis=1)[:, ::-1][:, :5]
    close(moduli, own["exact_eigenvalue_moduli_top5"], 1e-6)

    v = ravel_batch(probe(own, "power_start"))[0]
    for step in range(1, 151):
        image = pull_back(v)
        quotient = jnp.sum(image * v, axis=1) / jnp.sum(v * v, axis=1)
        v = image / jnp.linalg.norm(image, axis=1)[:, None]
        if f"power_value_{step}" in own:
            close(jnp.abs(quotient), jnp.abs(own[f"power_value_{step}"][:, 0]), 1e-6, str(step))
    vector = ravel_batch(probe(own, "power_vector_150"))[0]
    vector /= jnp.linalg.norm(vector, axis=1)[:, None]
    close(v, vector, 1e-6)
