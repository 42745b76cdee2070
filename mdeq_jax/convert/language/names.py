"""The original's parameter names of the sequence models against this project's, as tables.

Two entries with the same path are one parameter of the original (tied weights): importing checks
that they are equal, exporting writes both.
"""

from collections.abc import Iterator

import numpy as np

from mdeq_jax.convert.entries import LINEAR, VECTOR, Entry, Rule
from mdeq_jax.layers.adaptive_embedding import Vocabulary
from mdeq_jax.layers.relative_position import inverse_frequencies

# A convolution of kernel 1 as a linear layer, one of kernel k, and the g of their weight norm.
POINTWISE = Rule(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
CONV_1D = Rule(lambda w: w.transpose(2, 1, 0), lambda w: w.transpose(2, 1, 0))  # OIK, KIO
GAIN_2D = Rule(lambda g: g.reshape(-1), lambda g: g.reshape(-1, 1))
GAIN_3D = Rule(lambda g: g.reshape(-1), lambda g: g.reshape(-1, 1, 1))
INV_FREQ = "pos_emb.inv_freq"


def transformer_table(model) -> list[Entry]:
    """The tensors of a DEQ-Transformer, in PyTorch's order.

    Args:
        model: `config.model.transformer`.
    """
    return [*_embedding(model), *_injection(model), *_cell(model), *_softmax(model)]


def transformer_constants(model) -> dict[str, np.ndarray]:
    """Entries that hold no parameter but what the model computes itself."""
    return {INV_FREQ: np.array(inverse_frequencies(model.d_model), np.float32)}


def _vocabulary(model) -> Vocabulary:
    return Vocabulary(model.vocab_size, tuple(model.cutoffs), model.div_val)


def _table_shapes(model) -> tuple[tuple[int, int], ...]:
    return _vocabulary(model).table_shapes(model.d_embed)


def _projects(model) -> bool:
    return model.div_val > 1 or model.d_embed != model.d_model


def _embedding(model) -> Iterator[Entry]:
    shapes = _table_shapes(model)
    for i, shape in enumerate(shapes):
        path = ("params", "embedding", f"table{i}")
        yield Entry(f"word_emb.emb_layers.{i}.weight", shape, path, VECTOR)
    if _projects(model):
        for i, (_, width) in enumerate(shapes):
            path = ("params", "embedding", f"projection{i}")
            yield Entry(f"word_emb.emb_projs.{i}.weight", (model.d_model, width), path, LINEAR)


def _injection(model) -> Iterator[Entry]:
    d, path = model.d_model, ("params", "injection")
    yield Entry("inject_conv.weight", (3 * d, d, 1), (*path, "weight", "kernel"), POINTWISE)
    yield Entry("inject_conv.bias", (3 * d,), (*path, "bias"), VECTOR)
    yield Entry(INV_FREQ, (d // 2,), None, VECTOR)


def _cell(model) -> Iterator[Entry]:
    d, wide = model.d_model, model.d_inner
    attention, heads = "func.dec_attn", (model.n_head, model.d_head)
    for name, ours in (("r_w_bias", "content_bias"), ("r_r_bias", "distance_bias")):
        yield Entry(f"{attention}.{name}", heads, ("params", "cell", ours), VECTOR)
    norm = model.weight_norm
    yield from _layer(f"{attention}.qkv_net", "qkv", (3 * d, d, 1), norm, bias=False)
    yield from _layer(f"{attention}.r_net", "distance", (d, d, 1), norm, bias=False)
    yield from _layer(f"{attention}.o_net", "output", (d, d, 1), norm)
    yield from _layer("func.pos_ff.ff1_net", "ff1", (wide, d), norm)
    yield from _layer("func.pos_ff.ff2_net", "ff2", (d, wide), norm)


def _layer(name, ours, shape, weight_norm, *, bias=True) -> Iterator[Entry]:
    """A linear layer, or a convolution of kernel 1. With weight norm PyTorch's bias comes first."""
    path = ("params", "cell", ours)
    rule, gain = (POINTWISE, GAIN_3D) if len(shape) == 3 else (LINEAR, GAIN_2D)
    biases = [Entry(f"{name}.bias", shape[:1], (*path, "bias"), VECTOR)] if bias else []
    if weight_norm:
        yield from biases
        ones = (1,) * (len(shape) - 1)
        yield Entry(f"{name}.weight_g", (shape[0], *ones), (*path, "weight", "g"), gain)
        yield Entry(f"{name}.weight_v", shape, (*path, "weight", "v"), rule)
    else:
        yield Entry(f"{name}.weight", shape, (*path, "weight", "kernel"), rule)
        yield from biases


def _softmax(model) -> Iterator[Entry]:
    shapes, clusters = _table_shapes(model), len(model.cutoffs) + 1
    path = ("params", "softmax")
    if clusters > 1:
        shape = (clusters - 1, model.d_embed)
        yield Entry("crit.cluster_weight", shape, (*path, "cluster_table"), VECTOR)
        yield Entry("crit.cluster_bias", shape[:1], (*path, "cluster_bias"), VECTOR)
    for i, shape in enumerate(shapes):
        table = ("params", "embedding", f"table{i}")
        yield Entry(f"crit.out_layers.{i}.weight", shape, table, VECTOR)
        yield Entry(f"crit.out_layers.{i}.bias", shape[:1], (*path, f"bias{i}"), VECTOR)
    if not _projects(model):
        return
    for i in range(clusters):
        source = 0 if model.div_val == 1 else i
        name, shape = f"crit.out_projs.{i}.weight", (model.d_model, shapes[source][1])
        if model.tie_projs[i] and model.projection_updates == "once":
            yield Entry(name, shape, ("params", "embedding", f"projection{source}"), LINEAR)
        else:
            yield Entry(name, shape, (*path, f"projection{i}"), LINEAR)


def projection_ties(model) -> list[tuple[str, str]]:
    """Names of the projections that share storage in the original, two by two."""
    if not _projects(model):
        return []
    return [
        (
            f"word_emb.emb_projs.{0 if model.div_val == 1 else i}.weight",
            f"crit.out_projs.{i}.weight",
        )
        for i, tied in enumerate(model.tie_projs)
        if tied
    ]


def trellisnet_table(model) -> list[Entry]:
    """The tensors of a DEQ-TrellisNet and of its loss, in PyTorch's order.

    Args:
        model: `config.model.trellisnet`.
    """
    hidden, vocabulary = model.nhid + model.nout, model.vocab_size
    kernel, norm = model.kernel_size, model.weight_norm
    entries = [
        *_conv("trellisnet.func.full_conv", "cell", (4 * hidden, hidden, kernel), norm),
        *_conv("trellisnet.inject_conv", "injection", (4 * hidden, model.ninp, kernel), norm),
    ]
    table = ("params", "embedding", "table0")
    shape = (vocabulary, model.ninp)
    entries += [
        Entry("encoder.weight", shape, table, VECTOR),
        Entry("decoder.weight", shape, table, VECTOR),
        Entry("decoder.bias", (vocabulary,), ("params", "softmax", "bias0"), VECTOR),
    ]
    if model.cutoffs:
        shape, path = (len(model.cutoffs), model.ninp), ("params", "softmax")
        entries += [
            Entry("criterion.tail_vectors", shape, (*path, "cluster_table"), VECTOR),
            Entry("criterion.tail_bias", shape[:1], (*path, "cluster_bias"), VECTOR),
        ]
    return entries


def _conv(name, ours, shape, weight_norm) -> Iterator[Entry]:
    path = ("params", ours)
    yield Entry(f"{name}.bias", shape[:1], (*path, "bias"), VECTOR)
    if weight_norm:
        yield Entry(f"{name}.weight_g", (shape[0], 1, 1), (*path, "weight", "g"), GAIN_3D)
        yield Entry(f"{name}.weight_v", shape, (*path, "weight", "v"), CONV_1D)
    else:
        yield Entry(f"{name}.weight", shape, (*path, "weight", "kernel"), CONV_1D)
