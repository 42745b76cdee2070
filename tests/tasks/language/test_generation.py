"""Text is continued as the whole text would be, whatever the solves start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.data import load_dataset
from mdeq_jax.models import build_model
from mdeq_jax.tasks import GenerationRequest
from mdeq_jax.tasks.language.generation import Generator, Text, draw_from
from mdeq_jax.tasks.language.slot_plan import IDLE, plan_slots
from mdeq_jax.tasks.language.task import LanguageModel

PROMPT = np.array([3, 1, 4, 1, 5], np.int32)
GREEDY = GenerationRequest(length=6, temperature=0.0, num_samples=2)
DRAWN = GenerationRequest(length=6, temperature=0.7, num_samples=2, seed=3)
TEXTS = [Text(PROMPT, sample) for sample in range(2)]
SOLVER = {"solver.forward.max_steps": 40, "solver.forward.tol": 1e-6}


def prepare(language_config, family):
    """A model with random weights, large enough for its outputs to differ."""
    config = language_config(family, **SOLVER)
    config = LanguageModel(config).complete(config, load_dataset(config.data))
    model = build_model(config)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))
    params = dict(variables["params"])
    for part in ("embedding", "injection"):
        params[part] = jax.tree.map(lambda x: 100 * x, params[part])
    return model, {"params": params}


@pytest.fixture(scope="module")
def expected():
    """Returns the most likely continuation, for which the whole text is solved each time."""

    def continuation(model, variables):
        text, end = np.zeros((1, len(PROMPT) + GREEDY.length), np.int32), len(PROMPT)
        text[0, :end] = PROMPT
        solve = jax.jit(lambda text: model.apply(variables, text).logits.log_probs()[0])
        for position in range(end, text.shape[1]):
            # A position does not see those after it, so what is there does not matter.
            text[0, position] = np.argmax(solve(text)[position - 1])
        return text[0, end:]

    return continuation


@pytest.mark.parametrize(
    ("family", "lengths"),
    [("deq_transformer", (1, 16)), ("transformer", (16,)), ("deq_trellisnet", (16,))],
)
def test_the_most_likely_continuation(language_config, expected, family, lengths):
    """The same as the whole text's, solved anew for each token."""
    model, variables = prepare(language_config, family)
    tokens = expected(model, variables)
    assert len(set(tokens.tolist())) > 1
    for length in lengths:
        generator = Generator(model, variables, GREEDY, segment_length=length, slots=2)
        for warm in {family != "transformer", False}:
            result = generator(TEXTS, warm=warm)
            np.testing.assert_array_equal(result.tokens, [tokens] * 2)
            assert (result.nfe is None) == (family == "transformer")


@pytest.fixture(scope="module")
def transformer(language_config):
    """A model and its generators with two slots: of segments with one and with three tokens."""
    model, variables = prepare(language_config, "deq_transformer")
    return model, {
        length: Generator(model, variables, DRAWN, segment_length=length, slots=2)
        for length in (1, 3)
    }


def test_a_full_segment_moves_into_the_memory(transformer):
    """Segments of three tokens and a memory that holds the rest give the same text."""
    _, generators = transformer
    results = [generator([Text(PROMPT)]).tokens for generator in generators.values()]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("length", [1, 3])
def test_a_text_does_not_depend_on_its_neighbours(transformer, length):
    """Five texts of other lengths through two slots, in any order, and each one alone."""
    generator = transformer[1][length]
    texts = [Text(PROMPT[:n], sample) for n, sample in ((5, 0), (1, 0), (3, 1), (1, 1), (5, 1))]
    together = generator(texts)
    assert len({tuple(row) for row in together.tokens}) == 5
    alone = [generator([text]).tokens[0] for text in texts]
    np.testing.assert_array_equal(together.tokens, alone)
    np.testing.assert_array_equal(generator(texts[::-1]).tokens, alone[::-1])
    # 40 steps in two slots, of which the last one waits for the other for a few.
    assert together.nfe is not None and len(together.nfe) < 26


def test_an_idle_slot_delays_no_other(transformer):
    """The solves of a text that is alone end as if there were no other slot."""
    _, generators = transformer
    with_idle = generators[1]([Text(PROMPT)])
    with_itself = generators[1]([Text(PROMPT)] * 2)
    np.testing.assert_array_equal(with_itself.tokens, [with_idle.tokens[0]] * 2)
    np.testing.assert_array_equal(with_itself.nfe, with_idle.nfe)


def test_slots_take_texts_in_order():
    plan = plan_slots([2, 4, 1, 2], slots=2)
    np.testing.assert_array_equal(plan.text, [[0, 1], [0, 1], [2, 1], [3, 1], [3, IDLE]])
    np.testing.assert_array_equal(plan.number, [[0, 0], [1, 1], [0, 2], [0, 3], [1, IDLE]])
    assert [(place.slot, place.first) for place in plan.places] == [(0, 0), (1, 0), (0, 2), (0, 3)]


def test_segments_are_short_only_if_the_memory_replaces_them(language_config):
    shortest = {}
    for family in ("deq_transformer", "transformer", "deq_trellisnet"):
        model, _ = prepare(language_config, family)
        shortest[family] = (model.shortest_segment(12), model.shortest_segment(13))
    assert shortest["deq_transformer"] == (1, 13)  # of a memory of 12
    assert shortest["transformer"] == shortest["deq_trellisnet"] == (12, 13)


def test_draws():
    log_probs = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 4000))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(**settings):
        tokens = draw_from(GenerationRequest(1, **settings))(log_probs, keys)
        return np.bincount(tokens, minlength=3) / 4000

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0], atol=0.03)
    sharper = np.array([0.25, 0.09, 0.04])
    np.testing.assert_allclose(shares(temperature=0.5), sharper / sharper.sum(), atol=0.03)
    np.testing.assert_array_equal(shares(temperature=0.0), [1, 0, 0])
