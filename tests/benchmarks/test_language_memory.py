"""The plan of a language model's training step: no growth with solver steps, no whole logits."""

import pytest

from benchmarks.language_memory import compile_gradient, compile_step
from mdeq_jax.configs import wikitext103_transformer
from tests.helpers.tiny import override

BATCH, LENGTH, VOCABULARY = 4, 32, 6_000
SMALL = {
    "model.transformer.vocab_size": VOCABULARY,
    "model.transformer.cutoffs": (500, 1_000, 4_000),
    "model.transformer.d_embed": 64,
    "model.transformer.d_model": 16,
    "model.transformer.n_head": 2,
    "model.transformer.d_head": 8,
    "model.transformer.d_inner": 32,
    "model.transformer.mem_len": 32,
    "data.segment_length": LENGTH,
}


def compiled(build, **fields):
    return build(override(wikitext103_transformer.get_config(), {**SMALL, **fields}), BATCH)


@pytest.fixture(scope="module")
def step():
    return compiled(compile_step, **{"solver.forward.max_steps": 30})


@pytest.mark.slow
def test_memory_does_not_grow_with_solver_steps(step):
    """Anderson's method keeps its ring of states, and the residuals of each step alone."""
    more = compiled(compile_step, **{"solver.forward.max_steps": 120})
    fewer, all_steps = (plan.memory_analysis().temp_size_in_bytes for plan in (step, more))
    traces, state = 2 * BATCH * 4, BATCH * LENGTH * 16 * 4  # bytes of a step
    assert all_steps - fewer <= 90 * 4 * traces < 90 * state / 4


@pytest.mark.slow
def test_no_logits_of_all_tokens(step):
    """A tail is computed in blocks of its own tokens; the whole batch has a head's logits only."""
    text, tokens = step.as_text(), BATCH * LENGTH
    assert f"[{tokens},503]" in text  # the head with its three columns, so the search can find
    for rows in (VOCABULARY, 3_000, 2_000):
        assert f"[{tokens},{rows}]" not in text and f"[{BATCH},{LENGTH},{rows}]" not in text
    gradient = compiled(compile_gradient).memory_analysis().temp_size_in_bytes
    assert gradient < 4 * tokens * VOCABULARY
