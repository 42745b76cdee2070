"""Ten training steps and an evaluation of the original, repeated in float64."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.engine.state import build_optimizer
from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.deq_transformer.build import build_deq_transformer, shared_parameters
from tests.helpers.language import close, export_float64, import_float64, transformer_config

SOLVER = {"max_steps": 80, "tol": 1e-13}
EACH_USE = {
    "model.transformer.projection_updates": "each_use",
    **{f"solver.{way}.{k}": v for way in ("forward", "backward") for k, v in SOLVER.items()},
}


@pytest.fixture
def trace(reference_dir, x64):
    """Settings, arrays, config, model and initial parameters of the trace."""
    folder = reference_dir / "deq_transformer"
    settings = json.loads((folder / "training_trace.json").read_text())
    arrays = dict(np.load(folder / "training_trace.npz"))
    config = transformer_config(settings["model"], EACH_USE)
    state_dict = load_torch_file(folder / "training_trace_initial.pkl")
    frequencies = tuple(state_dict["pos_emb.inv_freq"].tolist())
    model = build_deq_transformer(config).clone(frequencies=frequencies)
    params = convert_state_dict(state_dict, config)["params"]
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), params)
    return settings, arrays, config, model, params


def assert_parameters(params, arrays, prefix, config, tol):
    exported = export_float64(params, config)
    for name, weight in exported.items():
        close(weight, arrays[prefix + name], tol, prefix + name)


def make_step(model, optimizer, num_layers):
    @partial(jax.jit, static_argnames="pretraining")
    def step(params, opt_state, memory, tokens, targets, pretraining):
        def loss_fn(params):
            forward = ForwardOptions(pretraining_layers=num_layers if pretraining else None)
            out = model.apply(
                {"params": params}, tokens, memory=memory, train=True, forward=forward
            )
            return jnp.mean(out.logits.nll(targets)), out.memory

        (loss, memory), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, memory, loss, grads

    return step


@pytest.mark.slow
def test_ten_training_steps(trace):
    settings, arrays, config, model, params = trace
    train, length = settings["training"], settings["model"]["tgt_len"]
    config.train.update(
        learning_rate=train["lr"],
        end_learning_rate=train["eta_min"],
        warmup_steps=train["warmup_step"],
        schedule_from_start=True,
        first_step_at_full_rate=True,
        grad_clip=train["clip"],
        grad_clip_eps=1e-6,
    )
    schedule = learning_rate(config.train, train["max_step"])
    optimizer = build_optimizer(config.train, train["max_step"], shared_parameters(config))
    step = make_step(model, optimizer, settings["model"]["n_layer"])
    opt_state, tokens = optimizer.init(params), jnp.asarray(arrays["tokens"].T, jnp.int32)
    memory = model.empty_memory(tokens.shape[0], jnp.float64)
    assert_parameters(params, arrays, "initial/", config, 1e-12)
    for n in range(train["steps"]):
        start = n * length
        np.testing.assert_allclose(schedule(n), arrays["lr"][n], rtol=1e-12)
        params, opt_state, memory, loss, grads = step(
            params,
            opt_state,
            memory,
            tokens[:, start : start + length],
            tokens[:, start + 1 : start + length + 1],
            pretraining=not arrays["equilibrium_mode"][n],
        )
        np.testing.assert_allclose(loss, arrays["loss"][n], rtol=1e-8)
        np.testing.assert_allclose(optax.tree.norm(grads), arrays["grad_norm"][n], rtol=1e-6)
        expected = arrays[f"memory_z_step{n}"].swapaxes(0, 1)
        close(memory.z[:, -expected.shape[1] :], expected, 1e-6, f"memory_z_step{n}")
        if f"grad_step{n}/inject_conv.bias" in arrays:
            for name, own in export_float64(grads, config).items():
                # A tied table's gradient is reported under the embedding's name only.
                if f"grad_step{n}/{name}" in arrays:
                    expected = arrays[f"grad_step{n}/{name}"]
                    scale = max(np.linalg.norm(expected), 1e-3 * arrays["grad_norm"][n])
                    assert np.linalg.norm(own - expected) < 1e-6 * scale, name
        if f"after_step{n}/inject_conv.bias" in arrays:
            assert_parameters(params, arrays, f"after_step{n}/", config, 1e-6)
    np.testing.assert_allclose(schedule(train["steps"]), arrays["lr_after_last"], rtol=1e-12)
    assert_parameters(params, arrays, "final/", config, 1e-6)
    close(memory.injection, arrays["memory_u_step9"].swapaxes(0, 1), 1e-6, "memory_u_step9")
    for group in shared_parameters(config):
        first, *others = (params[layer][name] for layer, name in group)
        assert all((first == other).all() for other in others)


def test_evaluation(trace):
    """Segments of another length, the last one shorter, memory carried from empty."""
    _, arrays, config, model, _ = trace
    final = {k.removeprefix("final/"): v for k, v in arrays.items() if k.startswith("final/")}
    variables = import_float64(final, config)
    tokens = jnp.asarray(arrays["tokens"].T, jnp.int32)
    memory = model.empty_memory(tokens.shape[0], jnp.float64)
    length, last = int(arrays["eval_tgt_len"]), tokens.shape[1] - 1

    @jax.jit
    def evaluate(tokens, targets, memory):
        out = model.apply(variables, tokens, memory=memory)
        return jnp.mean(out.logits.nll(targets)), out.memory

    losses, sizes = [], []
    for start in range(0, last, length):
        end = min(start + length, last)
        loss, memory = evaluate(tokens[:, start:end], tokens[:, start + 1 : end + 1], memory)
        losses.append(float(loss))
        sizes.append(end - start)
    np.testing.assert_allclose(losses, arrays["eval_segment_loss"], rtol=1e-8)
    mean = np.dot(losses, sizes) / np.sum(sizes)
    np.testing.assert_allclose(mean, arrays["eval_loss"], rtol=1e-8)
    np.testing.assert_allclose(np.exp(mean), arrays["eval_ppl"], rtol=1e-8)
