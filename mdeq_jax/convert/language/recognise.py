"""Which sequence model a file belongs to, by the names and shapes of its tensors."""

from collections.abc import Mapping
from itertools import accumulate, count, takewhile
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from mdeq_jax.convert.entries import find_misfit
from mdeq_jax.convert.language.names import transformer_table, trellisnet_table
from mdeq_jax.convert.language.state_dict import FAMILIES, add_missing_loss, count_parameters
from mdeq_jax.convert.language.variants import standard_names
from mdeq_jax.convert.mdeq.variants import Named

Shapes = Mapping[str, tuple[int, ...]]

# Fields of the released models; the three Transformers differ in no shape.
_RELEASED_TRANSFORMER = {
    "vocab_size": 267_735,
    "cutoffs": (20_000, 40_000, 200_000),
    "d_embed": 700,
    "d_model": 700,
    "n_head": 10,
    "d_inner": 48_000,
    "weight_norm": True,
}
_RELEASED_TRELLISNET = {
    "vocab_size": 267_735,
    "ninp": 500,
    "nhid": 1500,
    "kernel_size": 2,
    "weight_norm": True,
}


class Recognised(NamedTuple):
    """What a file is.

    Attributes:
        text: for people.
        parameters: number of trainable parameters, tied ones once.
        named: its tensors under the names of the tables.
    """

    text: str
    parameters: int
    named: Named


def recognise(state_dict: Mapping[str, np.ndarray]) -> Recognised | None:
    """The sequence model of a state dict; None if it is of none."""
    for family, infer in (("deq_transformer", _transformer), ("deq_trellisnet", _trellisnet)):
        named = standard_names(state_dict, FAMILIES[family].cell)
        found = infer(named.tensors)
        if found is not None:
            return _report(named, *found)
    return None


def _report(named: Named, kind: str, fields: dict, table, released: dict, name: str) -> Recognised:
    tensors = dict(named.tensors)
    notes = [*named.notes, *add_missing_loss(tensors, table)]
    misfit = find_misfit(tensors, table)
    shown = ", ".join(f"{field}={value}" for field, value in fields.items())
    text = f"{kind} ({shown})"
    if all(fields[field] == value for field, value in released.items()):
        text = f"{text}, as {name}"
    if misfit.count:
        text = f"incomplete or altered, {misfit.count} tensors do not fit; nearest is {text}"
    return Recognised(text, count_parameters(table), named._replace(notes=notes))


def _listed(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """The shapes of `pattern.format(0)`, `pattern.format(1)`, ... as far as they go."""
    names = takewhile(shapes.__contains__, (pattern.format(i) for i in count()))
    return [shapes[name] for name in names]


def _transformer(tensors: Mapping[str, np.ndarray]):
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    tables = _listed(shapes, "word_emb.emb_layers.{}.weight")
    heads = shapes.get("func.dec_attn.r_w_bias", ())
    inner, injection = (
        shapes.get("func.pos_ff.ff1_net.bias", ()),
        shapes.get("inject_conv.bias", ()),
    )
    if (
        not tables
        or any(len(t) != 2 for t in tables)
        or len(heads) != 2
        or not (inner and injection)
    ):
        return None
    num_tails = shapes.get("crit.cluster_bias", (0,))[0]
    cutoffs = tuple(accumulate(rows for rows, _ in tables))[:-1]
    fields = {
        "vocab_size": sum(rows for rows, _ in tables),
        # One table shows how many clusters there are, but not where they begin.
        "cutoffs": cutoffs if len(tables) > 1 else tuple(range(1, num_tails + 1)),
        "div_val": tables[0][1] // max(tables[1][1], 1) if len(tables) > 1 else 1,
        "tie_projs": _tied(tensors, num_tails + 1, shared=len(tables) == 1),
        "d_embed": tables[0][1],
        "d_model": injection[0] // 3,
        "n_head": heads[0],
        "d_head": heads[1],
        "d_inner": inner[0],
        "weight_norm": "func.pos_ff.ff1_net.weight_g" in shapes,
    }
    table = transformer_table(SimpleNamespace(**fields, projection_updates="once"))
    if len(tables) == 1:
        fields["cutoffs"] = f"{num_tails} that do not show"
    name = "the original's wt103_deq_transformer, its _reg and its _preln_reg"
    return "a DEQ-Transformer", fields, table, _RELEASED_TRANSFORMER, name


def _tied(tensors: Mapping[str, np.ndarray], clusters: int, shared: bool) -> tuple[bool, ...]:
    """For each cluster, whether both projections hold the same numbers."""
    pairs = [
        (f"word_emb.emb_projs.{0 if shared else i}.weight", f"crit.out_projs.{i}.weight")
        for i in range(clusters)
    ]
    return tuple(
        a in tensors and b in tensors and np.array_equal(tensors[a], tensors[b]) for a, b in pairs
    )


def _trellisnet(tensors: Mapping[str, np.ndarray]):
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    table = shapes.get("encoder.weight", ())
    cell, conv = "trellisnet.func.full_conv", "weight"
    weight_norm = f"{cell}.weight_v" in shapes
    kernel = shapes.get(f"{cell}.weight_v" if weight_norm else f"{cell}.{conv}", ())
    if len(table) != 2 or len(kernel) != 3:
        return None
    num_tails = shapes.get("criterion.tail_bias", (0,))[0]
    fields = {
        "vocab_size": table[0],
        "cutoffs": tuple(range(1, num_tails + 1)),
        "ninp": table[1],
        "nhid": kernel[1] - table[1],
        "nout": table[1],
        "kernel_size": kernel[2],
        "weight_norm": weight_norm,
    }
    entries = trellisnet_table(SimpleNamespace(**fields))
    fields["cutoffs"] = f"{num_tails} that do not show"
    name = "the original's run_wt103_deq_trellisnet"
    return "a DEQ-TrellisNet", fields, entries, _RELEASED_TRELLISNET, name
