"""The cell, its equilibria, losses, memories and gradients against what the original computed."""

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.trellisnet import cell as cells
from mdeq_jax.models.trellisnet.network import Memory
from tests.helpers.language import close


@pytest.fixture
def weights(reference):
    return reference.model.apply(reference.variables, method=lambda model: model.cell())


@pytest.mark.parametrize("history", ["zero_history", "with_history"])
def test_the_cell(reference, weights, history):
    spec = reference.model.cell.spec
    z, u, z0 = (reference.time_last(f"probe/{name}") for name in ("z", "u", "z0"))
    x = cells.CellInput(u, z0 if history == "with_history" else jnp.zeros_like(z0))
    convolved = cells.convolve(spec, weights, z, x)
    close(convolved, reference.time_last(f"cell/conv_out_{history}"), reference.tol, "conv_out")
    image = cells.apply_cell(spec, weights, z, x)
    close(image, reference.time_last(f"cell/f_z_{history}"), reference.tol, "f_z")


def test_effective_weights(reference, weights):
    kernel = weights["kernel"].transpose(2, 1, 0)
    close(kernel, reference.array("effective_weight/full_conv"), reference.tol)
    variables = reference.variables["params"]["injection"]
    kernel = (
        variables["weight"]["v"]
        * (variables["weight"]["g"] / jnp.linalg.norm(variables["weight"]["v"], axis=(0, 1)))[
            None, None
        ]
    )
    kernel = kernel.transpose(2, 1, 0)
    close(kernel, reference.array("effective_weight/inject_conv"), reference.tol)


def run_segment(reference, variables, segment, memory, forward=None):
    tokens, targets = reference.segment(segment)
    model = reference.model

    @jax.jit
    def run(variables, memory):
        out = model.apply(variables, tokens, memory=memory, forward=forward)
        return out, out.logits.nll(targets)

    return run(variables, memory)


def test_segments(reference):
    """Embedding, injection, equilibrium, losses and history, segment after segment."""
    model, memory = reference.model, None
    for s in range(reference.num_segments):
        tokens, _ = reference.segment(s)
        variables = reference.variables
        embedded = model.apply(variables, tokens, method=lambda model, t: model.embedding(t))
        padded = reference.time_last(f"inject_input_padded_segment{s}")

        def same(actual, expected, name, s=s):
            close(actual, expected, reference.tol, f"{name}_segment{s}")

        same(embedded, reference.time_last(f"word_emb_segment{s}"), "word_emb")
        before = padded.shape[1] - embedded.shape[1]
        same(jnp.pad(embedded, ((0, 0), (before, 0), (0, 0))), padded, "inject_input_padded")
        injection = model.apply(variables, tokens, method="inject")
        same(injection, reference.time_last(f"u_segment{s}"), "u")

        out, nll = run_segment(reference, variables, s, memory)
        z = reference.time_last(f"z_star_segment{s}")
        same(out.z_star, z, "z_star")
        same(out.logits.hidden, reference.time_first(f"output_segment{s}"), "output")
        same(nll, reference.time_first(f"nll_split_segment{s}"), "nll_split")
        same(jnp.mean(nll), reference.array(f"loss_split_segment{s}"), "loss_split")
        memory = out.memory
        same(memory.z, reference.time_first(f"memory_segment{s}"), "memory")


def test_full_softmax(reference):
    """One softmax over the same table and bias, without clusters."""
    for s in range(reference.num_segments):
        hidden = reference.time_first(f"output_segment{s}")
        params = reference.variables["params"]
        plain = reference.model.softmax.clone(
            vocabulary=reference.model.softmax.vocabulary._replace(cutoffs=())
        )
        variables = {"params": {"bias0": params["softmax"]["bias0"]}}
        distribution = plain.apply(variables, hidden, (params["embedding"]["table0"],))
        assert distribution.cluster_table is None
        logits = reference.time_first(f"full_softmax_logits_segment{s}")
        table = params["embedding"]["table0"]
        own = hidden @ table.T + params["softmax"]["bias0"][None, None]
        close(own, logits, reference.tol, "logits")
        close(distribution.log_probs(), jax.nn.log_softmax(logits), reference.tol, "log_probs")
        nll = distribution.nll(reference.segment(s)[1])
        expected = reference.time_first(f"nll_full_softmax_segment{s}")
        close(nll, expected, reference.tol, "nll_full_softmax")
        loss = reference.array(f"loss_full_softmax_segment{s}")
        close(jnp.mean(nll), loss, reference.tol, "loss_full_softmax")


def test_pieces_of_a_segment_one_after_another(reference):
    """Each piece starts from the last column of the one before, as the original's first version."""
    model, memory = reference.model, None
    kernel = model.cell.spec.kernel_size
    size = 5 if kernel == 2 else 4
    for s in range(reference.num_segments):
        expected = reference.time_last(f"z_star_by_subsequences_segment{s}")
        problem = model.apply(reference.variables, reference.segment(s)[0], method="problem")
        history = jnp.zeros_like(expected[:, :1]) if memory is None else memory
        pieces = []
        for start in range(0, expected.shape[1], size):
            x = problem.x._replace(
                injection=problem.x.injection[:, start : start + size], history=history
            )
            z0 = problem.z0[:, start : start + size]
            piece, _ = model.solve(problem._replace(x=x, z0=z0))
            pieces.append(piece)
            history = piece[:, -1:]
        close(jnp.concatenate(pieces, axis=1), expected, reference.tol, f"segment{s}")
        memory = reference.time_first(f"memory_segment{s}")


def test_pretraining(reference):
    layers = reference.config.model.trellisnet.n_layer
    forward = ForwardOptions(pretraining_layers=layers)
    out, _ = run_segment(reference, reference.variables, 0, None, forward)
    assert out.solution is None
    expected = reference.time_first("pretrain/output_segment0")
    close(out.logits.hidden, expected, reference.tol, "output")
    expected = reference.time_first("pretrain/memory_segment0")
    close(out.memory.z, expected, reference.tol, "memory")


@pytest.mark.parametrize("which", ["grad", "grad_last"])
@pytest.mark.parametrize("quirk", [True, False], ids=["last_row_is_padding", "true"])
def test_implicit_gradients(reference, which, quirk):
    embedding = reference.model.embedding.clone(last_row_is_padding=quirk)
    model = reference.model.clone(embedding=embedding)
    segment = 0 if which == "grad" else reference.num_segments - 1
    tokens, targets = reference.segment(segment)
    memory = None
    if segment:
        memory = Memory(reference.time_first(f"memory_segment{segment - 1}"))

    @jax.jit
    def gradient(params):
        def loss(params):
            out = model.apply({"params": params}, tokens, memory=memory, train=True)
            return jnp.mean(out.logits.nll(targets))

        return jax.value_and_grad(loss)(params)

    loss, gradients = gradient(reference.variables["params"])
    close(loss, reference.array(f"loss_split_segment{segment}"), reference.tol, "loss")
    arrays = {k: v for k, v in reference.arrays.items() if k.startswith(f"{which}/")}
    if not quirk:
        true = {k: v for k, v in reference.arrays.items() if k.startswith(f"{which}_true/")}
        assert true
        arrays |= {k.replace("_true", ""): v for k, v in true.items()}
    reference.gradients_close(gradients, f"{which}/", arrays)
