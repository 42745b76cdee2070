"""The lines around the first call of a compiled function."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mdeq_jax.runtime.first_call import TIMES_FILE, first_call


@pytest.fixture
def cache(tmp_path):
    """An empty compilation cache that keeps every program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    _use_cache(tmp_path, 0.0)
    yield tmp_path
    _use_cache(*before.values())


def _use_cache(folder, least_seconds):
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()  # JAX opens the folder only once


def call(lines, factor=3.0):
    """Compiles a function; what was logged goes to `lines`."""
    with first_call("the test step", f"factor {factor}", 40.0, lines.append):
        jax.jit(lambda x: jnp.sin(factor * x))(2.0)


def test_a_first_run_and_the_next(cache):
    first, second = [], []
    call(first)
    jax.clear_caches()  # as in another process
    call(second)
    assert first[0] == "Compiling the test step: about 40 s, estimated from the size of the model."
    assert re.match(r"Compiled the test step in \d+ s\. It is kept in ", first[1])
    assert str(cache) in first[1] and "the next run" in first[1]
    assert re.fullmatch(r"Preparing the test step: the same took \d+ s last time\.", second[0])
    assert re.match(rf"Loaded the test step from {re.escape(str(cache))} in \d+ s", second[1])


def test_another_program_is_not_the_same(cache):
    call([])
    lines = []
    call(lines, factor=4.0)
    assert lines[0].startswith("Compiling the test step: about 40 s")
    assert len(json.loads((cache / TIMES_FILE).read_text())) == 2


def test_without_a_cache(cache):
    _use_cache(None, 0.0)
    lines = []
    call(lines)
    assert lines[1].endswith("Nothing is kept: the compilation cache is off.")


@pytest.mark.parametrize("content", ['{"half', "[1, 2]", '{"key": null}'])
def test_a_damaged_file_of_times_is_replaced(cache, content):
    (cache / TIMES_FILE).write_text(content)
    lines = []
    call(lines)
    assert lines[0].startswith("Compiling the test step: about 40 s")
    assert json.loads((cache / TIMES_FILE).read_text())


def test_a_call_that_fails_is_not_remembered(cache):
    lines = []
    with pytest.raises(KeyError), first_call("the test step", "program", 40.0, lines.append):
        raise KeyError
    assert len(lines) == 1 and not (cache / TIMES_FILE).exists()
