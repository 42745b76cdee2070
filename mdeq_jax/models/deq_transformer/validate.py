"""Refuses settings of a DEQ-Transformer that cannot work, before anything is compiled."""

from itertools import pairwise
from typing import TYPE_CHECKING

from mdeq_jax.models.checks import check_counts, check_rates

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PROJECTION_UPDATES = ("once", "each_use")
WHERE = "model.transformer"


def validate(config: "ConfigDict") -> None:
    """Checks `config.model.transformer`.

    Raises:
        ValueError: names the value, the requirement and what to change.
    """
    model = config.model.transformer
    check_counts(
        model, WHERE, ("d_embed", "d_model", "n_head", "d_head", "d_inner", "n_layer", "div_val")
    )
    check_vocabulary(model.vocab_size, tuple(model.cutoffs), WHERE)
    check_rates(model, WHERE, ("dropout", "dropatt"))
    for field in ("mem_len", "local_size"):
        if model[field] < 0:
            raise ValueError(f"{WHERE}.{field} must not be negative; got {model[field]}.")
    if model.n_head * model.d_head != model.d_model:
        raise ValueError(
            f"{WHERE}.n_head * d_head must be d_model, because the injection has the width of "
            f"all heads; got {model.n_head} * {model.d_head} and d_model={model.d_model}. "
            f"Set d_head to d_model / n_head."
        )
    if model.d_model % 2:
        raise ValueError(
            f"{WHERE}.d_model must be even, because half of the distance features are sines; "
            f"got {model.d_model}."
        )
    _check_projections(model)


def _check_projections(model: "ConfigDict") -> None:
    clusters = len(model.cutoffs) + 1
    narrowest = model.d_embed // model.div_val ** (clusters - 1)
    if narrowest < 1:
        raise ValueError(
            f"{WHERE}.d_embed // div_val**i must be at least 1 for each of the {clusters} "
            f"clusters; got {model.d_embed} // {model.div_val}**{clusters - 1} = 0. Lower div_val, "
            "or use fewer cutoffs."
        )
    if len(model.tie_projs) != clusters:
        raise ValueError(
            f"{WHERE}.tie_projs needs one entry for each of the {clusters} clusters that the "
            f"cutoffs {tuple(model.cutoffs)} make; got {tuple(model.tie_projs)}."
        )
    if model.projection_updates not in PROJECTION_UPDATES:
        raise ValueError(
            f"{WHERE}.projection_updates must be one of {PROJECTION_UPDATES}; "
            f"got {model.projection_updates!r}."
        )


def check_vocabulary(size: int | None, cutoffs: tuple[int, ...], where: str) -> None:
    """Refuses a vocabulary of one token, and cutoffs that do not cut it.

    Args:
        size: number of tokens; None: not known before the data are read.
        cutoffs: first token of each cluster but the first.
        where: the part of the config.
    """
    if size is not None and size < 2:
        raise ValueError(
            f"{where}.vocab_size must be at least 2; got {size}. Set it to the number of tokens "
            "of the data."
        )
    edges = (0, *cutoffs) if size is None else (0, *cutoffs, size)
    if any(start >= end for start, end in pairwise(edges)):
        raise ValueError(
            f"{where}.cutoffs must rise and lie between 0 and vocab_size={size}; got {cutoffs}."
        )


def known_size(size: int | None, where: str) -> int:
    """The number of tokens, which a model cannot be built without.

    Raises:
        ValueError: it is None.
    """
    if size is None:
        raise ValueError(
            f"{where}.vocab_size is not known: set it to the number of tokens of the data, or let "
            "training read it from there."
        )
    return size
