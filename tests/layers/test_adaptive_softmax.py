"""The adaptive softmax and embedding against their definitions, and what a training step holds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.layers.adaptive_embedding import AdaptiveEmbedding, Vocabulary
from mdeq_jax.layers.adaptive_softmax import AdaptiveSoftmax, TokenDistribution

WIDTH, CUTOFFS, SIZE = 8, (10, 25), 40


def distribution(seed=0, batch=3, length=5, rows=(10, 15, 15)):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    widths = (8, 4, 2)
    return TokenDistribution(
        hidden=normal(batch, length, WIDTH),
        tables=tuple(normal(n, w) for n, w in zip(rows, widths)),
        biases=tuple(normal(n) for n in rows),
        projections=tuple(normal(WIDTH, w) for w in widths),
        cluster_table=normal(2, widths[0]),
        cluster_bias=normal(2),
        cutoffs=(rows[0], rows[0] + rows[1]),
    )


def by_definition(d):
    """log p of every token, one cluster after another, with the head's last columns reversed."""
    logits = [
        d.hidden @ p @ t.T + b[None, None] for p, t, b in zip(d.projections, d.tables, d.biases)
    ]
    clusters = d.hidden @ d.projections[0] @ d.cluster_table.T + d.cluster_bias[None, None]
    head = jax.nn.log_softmax(jnp.concatenate([logits[0], clusters], axis=-1))
    parts = [head[..., : d.tables[0].shape[0]]]
    for i in (1, 2):
        parts.append(head[..., head.shape[-1] - i, None] + jax.nn.log_softmax(logits[i]))
    return jnp.concatenate(parts, axis=-1)


TARGETS = {
    "all clusters": np.random.default_rng(1).integers(0, SIZE, (3, 5)),
    "head only": np.random.default_rng(2).integers(0, CUTOFFS[0], (3, 5)),
    "one tail only": np.random.default_rng(3).integers(CUTOFFS[1], SIZE, (3, 5)),
}


@pytest.mark.parametrize("max_logits", [2**25, 60, 1], ids=["whole", "blocks", "one_by_one"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_losses_and_gradients(targets, max_logits, x64):
    d, targets = distribution(), jnp.asarray(targets)
    weights = jnp.cos(jnp.arange(targets.size)).reshape(targets.shape)

    def blocks(d):
        return jnp.sum(weights * d.replace(max_logits=max_logits).nll(targets))

    def definition(d):
        picked = jnp.take_along_axis(by_definition(d), targets[..., None], axis=2)[..., 0]
        return -jnp.sum(weights * picked)

    own, expected = jax.jit(jax.value_and_grad(blocks))(d), jax.value_and_grad(definition)(d)
    chex.assert_trees_all_close(own, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [(10, 15, 15), (10, 1, 29), (10, 2, 28), (1, 1, 38)])
def test_losses_where_a_column_has_the_number_of_a_later_token(rows, x64):
    """The head's columns follow its tokens, so their numbers are those of tokens in the tails."""
    d = distribution(rows=rows, batch=1, length=SIZE)
    own = d.nll(jnp.arange(SIZE)[None])
    expected = -jnp.diagonal(by_definition(d)[0])[None]
    np.testing.assert_allclose(own, expected, rtol=1e-10)


def test_log_probs(x64):
    d = distribution()
    np.testing.assert_allclose(d.log_probs(), by_definition(d), rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(d.log_probs()).sum(-1), 1.0, rtol=1e-12)


def test_a_training_step_never_holds_all_logits():
    """The plan of a loss and its gradient is far below the logits of all tokens."""
    tokens, vocabulary = 512, Vocabulary(30_000, (2_000, 10_000), 4)
    embedding = AdaptiveEmbedding(vocabulary, 32, 32)
    softmax = AdaptiveSoftmax(vocabulary, 32, 32)
    shapes = jax.eval_shape(embedding.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    params = shapes["params"]
    tables = tuple(params[f"table{i}"] for i in range(3))
    hidden = jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
    variables = jax.eval_shape(softmax.init, jax.random.key(0), hidden, tables)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def loss(variables, hidden, tables, targets):
        out = softmax.apply(variables, hidden, tables)
        return jnp.mean(out.replace(max_logits=2**18).nll(targets))

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    plan = step.lower(variables, hidden, tables, targets).compile()
    text = plan.as_text()
    for rows in (30_000, 20_000, 8_000, 2_002):
        assert f"[{tokens},{rows}]" not in text
    all_logits = 4 * tokens * vocabulary.size
    assert plan.memory_analysis().temp_size_in_bytes < all_logits / 5


@pytest.mark.parametrize("div_val", [1, 2])
def test_embedding(div_val):
    vocabulary = Vocabulary(SIZE, CUTOFFS, div_val)
    model = AdaptiveEmbedding(vocabulary, 8, 12)
    tokens = jnp.arange(SIZE).reshape(4, 10)
    variables = model.init(jax.random.key(0), tokens)
    embedded = model.apply(variables, tokens).reshape(SIZE, 12)
    params = variables["params"]
    for token in (0, 9, 10, 24, 25, 39):
        i = sum(token >= cut for cut in CUTOFFS) if div_val > 1 else 0
        start = (0, *CUTOFFS)[i] if div_val > 1 else 0
        row = params[f"table{i}"][token - start] @ params[f"projection{i}"]
        np.testing.assert_allclose(embedded[token], row * 12**0.5, rtol=1e-5)


def test_vocabulary():
    vocabulary = Vocabulary(267_735, (20_000, 40_000, 200_000), 4)
    assert vocabulary.table_shapes(700) == (
        (20_000, 700),
        (20_000, 175),
        (160_000, 43),
        (67_735, 10),
    )
    assert vocabulary._replace(div_val=1).table_shapes(700) == ((267_735, 700),)
