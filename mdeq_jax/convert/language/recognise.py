"""Which sequence model a file belongs to, by the names and shapes of its tensors."""

from collections.abc import Mapping
from itertools import accumulate, count, takewhile
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from mdeq_jax.convert.entries import Entry, count_parameters, find_misfit
from mdeq_jax.convert.language.names import transformer_table, trellisnet_table

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
_TRANSFORMER_CONFIGS = "configs/wikitext103_transformer.py, its _reg and its _preln_reg"
_TRELLISNET_CONFIG = "configs/wikitext103_trellisnet.py"
_RELEASED_TRELLISNET = {
    "vocab_size": 267_735,
    "ninp": 500,
    "nhid": 1500,
    "kernel_size": 2,
    "weight_norm": True,
}


class Network(NamedTuple):
    """What a file is.

    Attributes:
        kind: for people.
        section: the part of `config.model` that describes such networks.
        fields: of that part, as far as they show.
        hidden: those of the fields whose values only stand for others.
        table: its tensors.
        misfit: number of tensors that do not fit.
        config: files in configs/ that have these fields; empty if none has.
    """

    kind: str
    section: str
    fields: dict[str, Any]
    hidden: dict[str, str]
    table: list[Entry]
    misfit: int = 0
    config: str = ""

    @property
    def text(self) -> str:
        """For people: the fields, and the config that has them."""
        shown = ", ".join(f"{name}={value}" for name, value in (self.fields | self.hidden).items())
        text = f"{self.kind} ({shown})" + (f", as {self.config}" if self.config else "")
        if self.misfit:
            return f"incomplete or altered, {self.misfit} tensors do not fit; nearest is {text}"
        return text

    @property
    def parameters(self) -> int:
        """Trainable parameters, tied ones once."""
        return count_parameters(self.table)


def recognise_transformer(tensors: Mapping[str, np.ndarray]) -> Network | None:
    """The DEQ-Transformer of tensors under the names of its table; None if it is none."""
    return _complete(_transformer(tensors), tensors, _RELEASED_TRANSFORMER, _TRANSFORMER_CONFIGS)


def recognise_trellisnet(tensors: Mapping[str, np.ndarray]) -> Network | None:
    """The DEQ-TrellisNet of tensors under the names of its table; None if it is none."""
    return _complete(_trellisnet(tensors), tensors, _RELEASED_TRELLISNET, _TRELLISNET_CONFIG)


def remedy(config, found: Network | None) -> list[str]:
    """The overrides that make a config fit a file; empty if the file fits no such config."""
    if found is None or found.misfit:
        return []
    model = config.model[found.section]
    changes = []
    for field, value in found.fields.items():
        fits = model[field] == value
        if field in found.hidden:
            fits = len(model[field]) == len(value)
        if not fits:
            changes.append(f"--config.model.{found.section}.{field}={value}")
    return changes


def _complete(found: Network | None, tensors, released: dict, config: str) -> Network | None:
    if found is None:
        return None
    if all(found.fields[field] == value for field, value in released.items()):
        found = found._replace(config=config)
    return found._replace(misfit=find_misfit(tensors, found.table).count)


def _listed(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """The shapes of `pattern.format(0)`, `pattern.format(1)`, ... as far as they go."""
    names = takewhile(shapes.__contains__, (pattern.format(i) for i in count()))
    return [shapes[name] for name in names]


def _transformer(tensors: Mapping[str, np.ndarray]) -> Network | None:
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
    hidden = {"cutoffs": f"{num_tails} that do not show"} if len(tables) == 1 else {}
    return Network("a DEQ-Transformer", "transformer", fields, hidden, table)


def _tied(tensors: Mapping[str, np.ndarray], clusters: int, shared: bool) -> tuple[bool, ...]:
    """For each cluster, whether both projections hold the same numbers."""
    pairs = [
        (f"word_emb.emb_projs.{0 if shared else i}.weight", f"crit.out_projs.{i}.weight")
        for i in range(clusters)
    ]
    return tuple(
        a in tensors and b in tensors and np.array_equal(tensors[a], tensors[b]) for a, b in pairs
    )


def _trellisnet(tensors: Mapping[str, np.ndarray]) -> Network | None:
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
    hidden = {"cutoffs": f"{num_tails} that do not show"}
    return Network("a DEQ-TrellisNet", "trellisnet", fields, hidden, entries)
