"""The cell, its equilibria, losses and memories against what the original computed."""

import jax
import jax.numpy as jnp
import pytest
from einops import rearrange

from mdeq_jax.layers import apply_dense
from mdeq_jax.layers.relative_position import distance_features
from mdeq_jax.models.deq_transformer import cell as cells
from mdeq_jax.models.language import Segment
from tests.helpers.language import close


@pytest.fixture
def weights(reference):
    return reference.model.apply(reference.variables, method=lambda model: model.cell())


def conditioned(reference, weights, with_memory):
    """The cell's input for the reference's random probe, and its memory."""
    u, z = reference.time_last("probe/u"), reference.time_last("probe/z")
    memory = reference.time_last("probe/z_memory") if with_memory else z[:, :0]
    memory_u = reference.time_last("probe/u_memory") if with_memory else u[:, :0]
    length, span = z.shape[1], z.shape[1] + memory.shape[1]
    features = distance_features(span, reference.model.frequencies, z.dtype)
    filled = jnp.full(z.shape[0], memory.shape[1], jnp.int32)
    allowed = cells.attention_mask(length, memory.shape[1], filled, reference.model.local_size)
    spec = reference.model.cell.spec
    x = cells.condition(spec, weights, u, memory, memory_u, features, allowed)
    return z, x, memory, features


@pytest.mark.parametrize("with_memory", [False, True], ids=["alone", "with_memory"])
def test_each_piece_of_the_cell(reference, weights, with_memory):
    spec, prefix = reference.model.cell.spec, "cell_memory/" if with_memory else "cell/"
    z, x, memory, features = conditioned(reference, weights, with_memory)

    def same(actual, name, time_last=True):
        expected = (
            reference.time_last(prefix + name) if time_last else reference.array(prefix + name)
        )
        close(actual, expected, reference.tol, name)

    joined = jnp.concatenate([memory, z], axis=1)
    attention_input = cells.layer_norm(joined) if spec.pre_lnorm else joined
    same(attention_input, "qkv_net_in")
    same(apply_dense(attention_input, weights["qkv"]), "qkv_net_out")
    distances = apply_dense(features, weights["distance"])
    same(distances[None], "r_net_out")
    same(rearrange(x.distances, "k h d -> k (h d)")[None], "r_net_out")

    queries, keys, _ = cells.project(spec, weights, z, x.injection)
    keys = jnp.concatenate([x.memory_keys, keys], axis=1)
    same(cells.attention_probabilities(weights, queries, keys, x), "attn_prob", time_last=False)
    attended = cells.attend(spec, weights, z, x)
    same(attended, "o_net_in")
    same(apply_dense(attended, weights["output"]), "o_net_out")
    block = cells.attention_block(spec, weights, z, x)
    same(block, "attn_block_out")

    ff_input = cells.layer_norm(block) if spec.pre_lnorm else block
    same(ff_input, "ff1_net_in", time_last=False)
    hidden = apply_dense(ff_input, weights["ff1"])
    same(hidden, "ff1_net_out", time_last=False)
    same(jax.nn.relu(hidden), "ff2_net_in", time_last=False)
    same(apply_dense(jax.nn.relu(hidden), weights["ff2"]), "ff2_net_out", time_last=False)
    same(cells.apply_cell(spec, weights, z, x), "f_z")


def test_effective_weights(reference, weights):
    names = {
        "func.dec_attn.qkv_net": "qkv",
        "func.dec_attn.r_net": "distance",
        "func.dec_attn.o_net": "output",
        "func.pos_ff.ff1_net": "ff1",
        "func.pos_ff.ff2_net": "ff2",
    }
    present = [name for name in names if f"effective_weight/{name}" in reference.arrays]
    assert bool(present) == reference.model.cell.spec.weight_norm
    for name in present:
        expected = reference.array(f"effective_weight/{name}")
        expected = expected.reshape(expected.shape[:2]).T
        close(weights[names[name]]["kernel"], expected, reference.tol, name)


@pytest.mark.parametrize("fixed_size", [True, False], ids=["fixed_memory", "growing_memory"])
def test_segments(reference, fixed_size):
    """Embedding, injection, equilibrium, losses and memory, segment after segment."""
    model, batch = reference.model, reference.arrays["tokens"].shape[1]

    @jax.jit
    def run(variables, tokens, targets, memory):
        out = model.apply(variables, tokens, memory=memory)
        embedded = model.apply(variables, tokens, method=lambda model, t: model.embedding(t))
        injection = model.apply(variables, tokens, method="inject")
        return out, out.logits.nll(targets), out.logits.log_probs(), embedded, injection

    memory = model.empty_memory(batch, reference.dtype) if fixed_size else None
    for s in range(reference.num_segments):
        tokens, targets = reference.segment(s)
        out, nll, log_probs, embedded, injection = run(reference.variables, tokens, targets, memory)

        def same(actual, expected, name, s=s):
            close(actual, expected, reference.tol, f"{name}_segment{s}")

        same(embedded, reference.array(f"word_emb_segment{s}"), "word_emb")
        features = reference.time_last(f"pos_emb_segment{s}")
        same(
            distance_features(len(features), model.frequencies, reference.dtype),
            features,
            "pos_emb",
        )
        same(injection, reference.time_last(f"u_segment{s}"), "u")
        same(out.z_star, reference.time_first(f"hidden_segment{s}"), "hidden")
        same(nll, reference.time_first(f"nll_ordered_segment{s}"), "nll_ordered")
        same(jnp.mean(nll), reference.array(f"loss_segment{s}"), "loss")
        picked = jnp.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
        close(-picked, nll, reference.tol)
        returned = reference.array(f"nll_returned_segment{s}")
        same(jnp.sort(nll.reshape(-1)), jnp.sort(returned.reshape(-1)), "nll_returned")

        memory = out.memory
        expected = reference.time_first(f"memory_z_segment{s}")
        filled = expected.shape[1]
        assert memory.z.shape[1] == model.mem_len and set(memory.filled.tolist()) == {filled}
        same(memory.z[:, -filled:], expected, "memory_z")
        expected = reference.time_first(f"memory_u_segment{s}")
        same(memory.injection[:, -filled:], expected, "memory_u")
        if not fixed_size:
            memory = memory._replace(
                z=memory.z[:, -filled:], injection=memory.injection[:, -filled:]
            )


def test_log_probs_are_a_distribution(reference):
    out = reference.model.apply(reference.variables, reference.segment(0)[0])
    total = jnp.sum(jnp.exp(out.logits.log_probs()), axis=-1)
    close(total, jnp.ones_like(total), reference.tol)


def test_a_segment_is_its_two_halves_with_memory(load, x64):
    """The cell is causal, so the second half with the first as memory is that of the whole."""
    reference = load("post_norm_plain")
    model, variables, tokens = reference.model, reference.variables, reference.segment(0)[0]
    half = tokens.shape[1] // 2
    whole = model.apply(variables, tokens)
    first = model.apply(variables, tokens[:, :half])
    second = model.apply(variables, Segment(tokens[:, half:], first.memory))
    close(first.z_star, whole.z_star[:, :half], 1e-6)
    close(second.z_star, whole.z_star[:, half:], 1e-6)
    close(second.memory.z, whole.memory.z, 1e-6)
    assert second.memory.filled.tolist() == [model.mem_len] * len(tokens)
