"""What a pickle may contain: calls, dict keys, and the errors for anything else."""

import re
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mdeq_jax.convert.errors import WeightsFileError

# Different integers below this have different hashes, so no choice of keys makes a dict quadratic.
_MAX_INT_KEY = 2**60


class UnsafePickleError(WeightsFileError):
    """A pickle names or calls something that could run code. It was not run."""


class AllowedCall(NamedTuple):
    """A function that a pickle may call.

    Attributes:
        call: the function.
        min_args: smallest number of arguments.
        max_args: largest number of arguments.
    """

    call: Callable
    min_args: int
    max_args: int


def check_key(key: Any) -> str | int:
    """Returns `key` if it is a string or an ordinary integer.

    Tuples are refused, because hashing one visits every value in it. A few hundred bytes can hold
    a tuple with an exponential number of values, if each level holds the one below twice.

    Raises:
        WeightsFileError: any other key.
    """
    if type(key) is str or (type(key) in (int, bool) and abs(key) < _MAX_INT_KEY):
        return key
    raise WeightsFileError(
        f"a dict or set in the file has the key {reprlib.repr(key)}: only strings and integers "
        "below 2**60 are read"
    )


def refused_global(module: str, name: str) -> WeightsFileError:
    """Returns the error for a global that is not allowed, with advice on the file."""
    dotted = f"{module}.{name}"
    if not re.fullmatch(r"[\w.]{1,200}", dotted):
        return WeightsFileError(f"damaged pickle: {reprlib.repr(dotted)} names no global")
    advice = _advice(module, name)
    return UnsafePickleError(
        f"refused: its pickle names the global `{dotted}`, which is not on the short list of "
        f"functions that rebuild tensors and could run code. Nothing was run. {advice}"
    )


# Modules whose functions run code: no checkpoint names them for a good reason.
_DANGEROUS = {
    *("builtins", "__builtin__", "os", "posix", "nt", "subprocess", "sys", "shutil", "socket"),
    *("importlib", "runpy", "pty", "code", "ctypes", "webbrowser", "pickle", "_pickle", "operator"),
    *("functools", "commands", "timeit", "asyncio", "multiprocessing", "urllib", "requests", "pip"),
}
# Classes of settings that training programs save with the weights, by the module's first name.
_SETTINGS = {
    *("argparse", "types", "yacs", "omegaconf", "easydict", "addict", "munch", "ml_collections"),
    *("mmcv", "mmengine", "detectron2", "fvcore", "hydra", "pathlib", "datetime"),
}


def _advice(module: str, name: str) -> str:
    """What to do about a file that names a global."""
    package = module.split(".")[0]
    if package in _DANGEROUS:
        return "Do not load it with `torch.load` or `pickle` unless you trust its source."
    if package == "numpy":
        what = "A numpy object was probably saved with the weights (a best accuracy as a number)."
    elif package == "torch":
        what = "A torch object was probably saved with the weights (a whole model)."
    elif package in _SETTINGS:
        what = f"A settings object ({name}) was probably saved with the weights."
    else:
        what = f"An object of the training program ({name}) was probably saved with the weights."
    return (
        f"{what} If you trust the file, open it with `torch.load(..., weights_only=False)` and "
        "save `model.state_dict()` alone."
    )
