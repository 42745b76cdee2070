"""Programs that a thread compiles before their first call."""

import threading

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax.runtime.early_program import EarlyProgram


@pytest.fixture
def traced():
    """A function, and the threads that traced it."""
    threads = []

    def double(x):
        threads.append(threading.current_thread())
        return 2 * x

    return jax.jit(double), threads


def test_the_call_uses_what_the_thread_compiled(traced):
    function, threads = traced
    program = EarlyProgram(function)
    thread = threading.Thread(target=program.job(lambda: (jax.ShapeDtypeStruct((3,), "float32"),)))
    thread.start()
    thread.join()
    assert program.early_s > 0
    assert program(jnp.ones(3)).tolist() == [2, 2, 2]
    assert threads == [thread]


def test_other_shapes_are_compiled_at_their_call(traced):
    function, threads = traced
    program = EarlyProgram(function)
    program.job(lambda: (jax.ShapeDtypeStruct((3,), "float32"),))()
    for size in (4, 3, 4, 5):
        assert program(jnp.ones(size)).tolist() == [2] * size
    assert len(threads) == 3
    with pytest.raises(TypeError, match="positional argument"):
        program(jnp.ones(3), 1)


def test_a_job_after_the_first_call_does_nothing(traced):
    function, threads = traced
    program = EarlyProgram(function)
    assert program(jnp.ones(2)).tolist() == [2, 2]
    program.job(lambda: pytest.fail("compiled again"))()
    assert program.early_s == 0 and threads == [threading.main_thread()]


def test_a_job_that_fails_leaves_the_function(traced):
    function, _ = traced
    program = EarlyProgram(function)
    with pytest.raises(ZeroDivisionError):
        program.job(lambda: (1 // 0,))()
    assert program(jnp.ones(2)).tolist() == [2, 2]
