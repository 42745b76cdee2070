"""Jobs in a thread."""

import threading

import pytest

from mdeq_jax.runtime.in_background import InBackground


def test_results_come_in_the_order_of_the_jobs():
    order = []

    def job(name):
        order.append((name, threading.current_thread() is threading.main_thread()))
        return name.upper()

    with InBackground({"a": lambda: job("a"), "b": lambda: job("b")}) as jobs:
        assert jobs.result("b") == "B" and jobs.result("a") == "A"
        assert "a" in jobs and "c" not in jobs
    assert order == [("a", False), ("b", False)]


def test_errors_are_raised_where_the_result_is_wanted():
    with InBackground({"bad": lambda: 1 // 0, "good": lambda: 1}) as jobs:
        assert jobs.result("good") == 1
        with pytest.raises(ZeroDivisionError):
            jobs.result("bad")


def test_leaving_waits_for_the_running_job_and_drops_the_others():
    begun, ended, go = [], [], threading.Event()

    def job(name):
        begun.append(name)
        go.wait(10)
        ended.append(name)

    with InBackground({name: (lambda n=name: job(n)) for name in "ab"}):
        threading.Timer(0.1, go.set).start()
        while not begun:
            pass
    assert begun == ended == ["a"]
