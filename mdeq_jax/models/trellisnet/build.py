"""From a config to a DEQ-TrellisNet, and its row in the table of families."""

from typing import TYPE_CHECKING

import flax.linen as nn

from mdeq_jax.implicit import build_gradient
from mdeq_jax.layers.adaptive_embedding import Vocabulary
from mdeq_jax.layers.adaptive_softmax import AdaptiveSoftmax
from mdeq_jax.models.checks import check_counts, check_rates
from mdeq_jax.models.deq_transformer.validate import (
    check_vocabulary,
    known_size,
)
from mdeq_jax.models.family import Family
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.models.trellisnet.cell import CellSpec, TrellisCell
from mdeq_jax.models.trellisnet.network import DEQTrellisNet, Embedding, Injection
from mdeq_jax.solvers import build_solver

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_WHERE = "model.trellisnet"


def build_deq_trellisnet(config: "ConfigDict") -> DEQTrellisNet:
    """A DEQ-TrellisNet with the distribution of the next token as output."""
    model, solver = config.model.trellisnet, config.solver
    f_solver = build_solver(solver.forward, "solver.forward", pallas=config.pallas)
    b_solver = build_solver(solver.backward, "solver.backward", pallas=config.pallas)
    hidden, vocab_size = model.nhid + model.nout, known_size(model.vocab_size, _WHERE)
    spec = CellSpec(
        hidden,
        model.kernel_size,
        model.dilation,
        model.weight_norm,
        model.dropouth,
        PRECISIONS[config.precision],
    )
    return DEQTrellisNet(
        embedding=Embedding(vocab_size, model.ninp, model.last_row_is_padding, parent=None),
        injection=Injection(
            (model.kernel_size, model.ninp, 4 * hidden), model.weight_norm, parent=None
        ),
        cell=TrellisCell(spec, parent=None),
        softmax=AdaptiveSoftmax(
            Vocabulary(vocab_size, tuple(model.cutoffs)),
            model.ninp,
            model.nout,
            projects=False,
            cluster_init=nn.initializers.zeros,
            parent=None,
        ),
        f_solver=f_solver,
        gradient=build_gradient(config.gradient, solver.forward, f_solver, b_solver),
        nout=model.nout,
        dropouti=model.dropouti,
        dropout=model.dropout,
    )


def validate(config: "ConfigDict") -> None:
    """Checks `config.model.trellisnet`.

    Raises:
        ValueError: names the value, the requirement and what to change.
    """
    model = config.model.trellisnet
    check_counts(model, _WHERE, ("ninp", "nhid", "nout", "kernel_size", "dilation"))
    check_vocabulary(model.vocab_size, tuple(model.cutoffs), _WHERE)
    check_rates(model, _WHERE, ("dropout", "dropouti", "dropouth"))
    if model.ninp != model.nout:
        raise ValueError(
            f"{_WHERE}.nout must be ninp, because input and output embeddings are one table; got "
            f"nout={model.nout} and ninp={model.ninp}."
        )


DEQ_TRELLISNET = Family(
    build=build_deq_trellisnet,
    validate=validate,
    architecture_fields=(
        "name",
        *(
            f"trellisnet.{field}"
            for field in (
                "vocab_size",
                "cutoffs",
                "ninp",
                "nhid",
                "nout",
                "kernel_size",
                "dilation",
                "weight_norm",
            )
        ),
    ),
    task="language_model",
)
