"""From a config to a DEQ-Transformer, and its rows in the table of families."""

from typing import TYPE_CHECKING

from mdeq_jax.implicit import build_gradient
from mdeq_jax.layers.adaptive_embedding import AdaptiveEmbedding, Vocabulary
from mdeq_jax.layers.adaptive_softmax import AdaptiveSoftmax
from mdeq_jax.models.deq_transformer.cell import CellSpec, TransformerCell
from mdeq_jax.models.deq_transformer.network import DEQTransformer
from mdeq_jax.models.deq_transformer.validate import WHERE, known_size, validate
from mdeq_jax.models.family import Family, SharedParameters
from mdeq_jax.models.precision import PRECISIONS
from mdeq_jax.solvers import build_solver

if TYPE_CHECKING:
    from ml_collections import ConfigDict

UNLIMITED = 1000  # what the original takes `local_size` 0 for


def build_deq_transformer(config: "ConfigDict") -> DEQTransformer:
    """A DEQ-Transformer with the distribution of the next token as output."""
    return _build(config, num_layers=None)


def build_transformer(config: "ConfigDict") -> DEQTransformer:
    """The same network with `n_layer` applications of its cell instead of the equilibrium."""
    return _build(config, num_layers=config.model.transformer.n_layer)


def _build(config: "ConfigDict", num_layers: int | None) -> DEQTransformer:
    model, solver = config.model.transformer, config.solver
    f_solver = build_solver(solver.forward, "solver.forward", pallas=config.pallas)
    b_solver = build_solver(solver.backward, "solver.backward", pallas=config.pallas)
    vocabulary = vocabulary_of(model)
    widths = (model.d_embed, model.d_model)
    return DEQTransformer(
        embedding=AdaptiveEmbedding(vocabulary, *widths, parent=None),
        cell=TransformerCell(_cell_spec(config), parent=None),
        softmax=AdaptiveSoftmax(
            vocabulary,
            *widths,
            ties_projection=stored_once(model),
            projects=projects(model),
            parent=None,
        ),
        f_solver=f_solver,
        gradient=build_gradient(config.gradient, solver.forward, f_solver, b_solver),
        mem_len=model.mem_len,
        local_size=model.local_size or UNLIMITED,
        num_layers=num_layers,
    )


def vocabulary_of(model: "ConfigDict") -> Vocabulary:
    """Tokens and clusters of `config.model.transformer`."""
    size = known_size(model.vocab_size, WHERE)
    return Vocabulary(size, tuple(model.cutoffs), model.div_val)


def projects(model: "ConfigDict") -> bool:
    """Whether the output layer projects to the width of the embeddings."""
    return model.div_val > 1 or model.d_embed != model.d_model


def stored_once(model: "ConfigDict") -> tuple[bool, ...]:
    """For each cluster, whether the output layer reads the embedding's projection.

    With `projection_updates` "each_use" tied projections are parameters of both layers, which the
    optimiser keeps equal; see `shared_parameters`.
    """
    once = model.projection_updates == "once"
    return tuple(once and tied for tied in model.tie_projs)


def shared_parameters(config: "ConfigDict") -> SharedParameters:
    """Groups of parameters that hold the same numbers: paths in "params".

    Each of a group has its own gradient and moments, and moves by the sum of all updates of the
    group. Empty unless `projection_updates` is "each_use".
    """
    model = config.model.transformer
    if model.projection_updates == "once" or not projects(model):
        return ()
    groups: dict[int, list[tuple[str, ...]]] = {}
    for i, tied in enumerate(model.tie_projs):
        if tied:
            source = 0 if model.div_val == 1 else i
            groups.setdefault(source, [("embedding", f"projection{source}")])
            groups[source].append(("softmax", f"projection{i}"))
    return tuple(tuple(group) for group in groups.values())


def _cell_spec(config: "ConfigDict") -> CellSpec:
    model = config.model.transformer
    return CellSpec(
        d_model=model.d_model,
        n_head=model.n_head,
        d_head=model.d_head,
        d_inner=model.d_inner,
        pre_lnorm=model.pre_lnorm,
        weight_norm=model.weight_norm,
        dropout=model.dropout,
        dropatt=model.dropatt,
        dtype=PRECISIONS[config.precision],
    )


_ARCHITECTURE_FIELDS = (
    "name",
    *(
        f"transformer.{field}"
        for field in (
            "vocab_size",
            "cutoffs",
            "div_val",
            "tie_projs",
            "projection_updates",
            "d_embed",
            "d_model",
            "n_head",
            "d_head",
            "d_inner",
            "pre_lnorm",
            "weight_norm",
        )
    ),
)

DEQ_TRANSFORMER = Family(
    build=build_deq_transformer,
    validate=validate,
    architecture_fields=_ARCHITECTURE_FIELDS,
    task="language_model",
    shared_parameters=shared_parameters,
)
TRANSFORMER = Family(
    build=build_transformer,
    validate=validate,
    architecture_fields=_ARCHITECTURE_FIELDS,
    task="language_model",
    shared_parameters=shared_parameters,
    has_equilibrium=False,
)
