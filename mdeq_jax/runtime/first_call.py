"""The first call of a compiled function: announced before, explained after, remembered."""

import collections
import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

TIMES_FILE = "mdeq_jax_first_calls.json"  # in the folder of the compilation cache
_HITS = "/jax/compilation_cache/cache_hits"
_WRITTEN = "/jax/compilation_cache/cache_misses"  # JAX records it when it writes a program
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


@contextlib.contextmanager
def first_call(
    what: str, program: str, estimate_s: float, log: Callable[[str], None]
) -> Iterator[None]:
    """Context of the call of a function that traces and compiles it.

    It logs a line before, with the time that the call will take: that of the last run with the same
    `program`, or the estimate. It logs a line after, with the time that it took and whether the
    next run finds the result in the compilation cache.

    Args:
        what: name of the function, as in "the training step".
        program: text that decides what is compiled, such as a config.
        estimate_s: seconds to trace and compile it, for a run that was never made.
        log: prints a line.
    """
    key = _key(what, program)
    last = _read_times().get(key)
    if last is None:
        log(f"Compiling {what}: about {estimate_s:.0f} s, estimated from the size of the model.")
    else:
        log(f"Preparing {what}: the same took {last:.0f} s last time.")
    before, start = dict(_events()), time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    counts = {name: _events()[name] - before.get(name, 0) for name in (_HITS, _WRITTEN, _SAVED)}
    log(_explain(what, seconds, counts))
    _remember(key, seconds)


def _explain(what: str, seconds: float, counts: dict[str, float]) -> str:
    folder = cache_folder()
    if folder is None:
        return f"Compiled {what} in {seconds:.0f} s. Nothing is kept: the compilation cache is off."
    if counts[_HITS] and not counts[_WRITTEN]:
        saved = f", which saved {counts[_SAVED]:.0f} s" if counts[_SAVED] >= 1 else ""
        return f"Loaded {what} from {folder} in {seconds:.0f} s{saved}."
    if counts[_WRITTEN]:
        return (
            f"Compiled {what} in {seconds:.0f} s. It is kept in {folder}: the next run with these "
            "settings only traces and loads it."
        )
    return f"Compiled {what} in {seconds:.0f} s."


def cache_folder() -> Path | None:
    """The folder of JAX's persistent compilation cache; None if it is off."""
    config: Any = jax.config
    folder = config.jax_compilation_cache_dir
    return Path(folder) if folder and config.jax_enable_compilation_cache else None


def _events() -> dict[str, float]:
    """Counts of this thread's cache events in JAX and sums of their durations, from a call on."""
    return _events_by_thread()[threading.get_ident()]


@functools.cache
def _events_by_thread() -> collections.defaultdict[int, collections.defaultdict[str, float]]:
    events: collections.defaultdict = collections.defaultdict(
        lambda: collections.defaultdict(float)
    )

    def count(event: str, **_) -> None:
        events[threading.get_ident()][event] += 1

    def add(event: str, duration_secs: float, **_) -> None:
        if event == _SAVED:
            events[threading.get_ident()][event] += duration_secs

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(add)
    return events


def _key(what: str, program: str) -> str:
    device = jax.devices()[0]
    parts = (what, program, jax.__version__, device.device_kind, str(jax.device_count()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_times() -> dict[str, float]:
    """Seconds by key; empty if there is no file, or one that cannot be read."""
    folder = cache_folder()
    if folder is None:
        return {}
    try:
        times = json.loads((folder / TIMES_FILE).read_text())
        return {key: float(value) for key, value in times.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(key: str, seconds: float) -> None:
    """Writes the time of a call; by the first process only. A folder that is full is no error."""
    folder = cache_folder()
    if folder is None or jax.process_index() != 0:
        return
    temporary = folder / f"{TIMES_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_read_times(), key: round(seconds, 1)}))
        temporary.replace(folder / TIMES_FILE)
