"""A compiled function whose program a thread may have made before its first call."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from mdeq_jax.runtime.garbage import no_collection
from mdeq_jax.tree import PyTree


def can_compile_early() -> bool:
    """Whether programs may be compiled in a thread while others run.

    GPUs compile at the first call: XLA times its algorithms, and nothing else should run then. With
    several hosts JAX has no other way than the first call.
    """
    return jax.process_count() == 1 and jax.default_backend() != "gpu"


class EarlyProgram:
    """A function of `jax.jit` or `pmap`, most of whose calls have arrays of the same shapes.

    Attributes:
        early_s: seconds that a thread took to trace and compile it; 0 if none did.
    """

    def __init__(self, function: Callable):
        """`function` is compiled at the first call, unless a job of `job` has begun before."""
        self._function: Any = function
        self._program: Any = None  # for the shapes of the job
        self._lock, self._called = threading.Lock(), False
        self.early_s = 0.0

    def job(self, shapes: Callable[[], tuple[PyTree, ...]]) -> Callable[[], None]:
        """A job for a thread, which compiles the program.

        It does nothing once the function has been called. A call waits for a job that has begun.

        Args:
            shapes: gives the arguments, as arrays or `jax.ShapeDtypeStruct`s.
        """

        def compile_program():
            with self._lock:
                if self._called:
                    return
                start = time.perf_counter()
                with no_collection():
                    lowered = self._function.lower(*shapes())
                self._program = lowered.compile()
                self.early_s = time.perf_counter() - start

        return compile_program

    def __call__(self, *args: PyTree) -> Any:
        """Calls the function."""
        with self._lock:
            self._called = True
        if self._program is not None:
            # A program refuses other shapes before it uses or donates anything.
            with contextlib.suppress(TypeError):
                return self._program(*args)
        return self._function(*args)
