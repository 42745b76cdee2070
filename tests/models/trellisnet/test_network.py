"""Dropout masks, memory and settings that cannot work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.models import ForwardOptions
from mdeq_jax.models.trellisnet.build import build_deq_trellisnet, validate
from mdeq_jax.models.trellisnet.network import DropoutMasks
from tests.helpers.language import trellisnet_config

SMALL = {"n_token": 20, "splits": [8, 12], "ninp": 4, "nhid": 5, "nout": 4}
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(4, 6) % 20
ONE_LAYER = ForwardOptions(pretraining_layers=2)


def small(**fields):
    fields = {f"model.trellisnet.{name}": value for name, value in fields.items()}
    model = build_deq_trellisnet(trellisnet_config(SMALL, fields))
    return model, model.init(jax.random.key(0), TOKENS)


def test_dropout_is_that_of_a_sample_wherever_it_is():
    model, variables = small(dropout=0.3, dropouti=0.2, dropouth=0.4)
    rngs = {"dropout": jax.random.key(1)}
    whole = model.apply(variables, TOKENS, train=True, forward=ONE_LAYER, rngs=rngs)
    forward = ONE_LAYER._replace(first_sample=2)
    part = model.apply(variables, TOKENS[2:], train=True, forward=forward, rngs=rngs)
    np.testing.assert_allclose(part.logits.hidden, whole.logits.hidden[2:], rtol=1e-6)


def test_masks_drop_what_they_name():
    model, variables = small(dropout=0.5, dropouth=0.5)
    keep = jnp.arange(4)[None, None] < 2
    masks = DropoutMasks(None, jnp.zeros((4, 1, 9), bool), jnp.tile(keep, (4, 1, 1)))
    out = model.apply(variables, TOKENS, train=True, forward=ONE_LAYER, masks=masks)
    assert not out.logits.hidden[..., 2:].any() and out.logits.hidden[..., :2].any()
    # Without the hidden state a position depends on the cell state before it and on its input.
    bare = model.apply(variables, TOKENS, forward=ONE_LAYER)
    assert not np.allclose(out.z_star, bare.z_star)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nout": 5}, "nout must be ninp"),
        ({"vocab_size": 1}, "vocab_size must be at least 2"),
        ({"cutoffs": (12, 8)}, "must rise"),
        ({"cutoffs": (12, 20)}, "must rise"),
        ({"dropouth": 1.0}, r"dropouth must be in \[0, 1\)"),
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
    ],
)
def test_refuses(fields, message):
    config = trellisnet_config(SMALL)
    with config.unlocked():
        config.model.trellisnet.update(fields)
    with pytest.raises(ValueError, match=message):
        validate(config)
