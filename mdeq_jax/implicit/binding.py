"""What `functools.partial` has bound of a function, and what the function takes."""

import inspect
from collections.abc import Callable
from functools import partial


def unbound(function: Callable) -> Callable:
    """The function inside nested `functools.partial`s."""
    while isinstance(function, partial):
        function = function.func
    return function


def bound_settings(function: Callable) -> dict:
    """The keyword arguments that nested `functools.partial`s bind."""
    settings: dict = {}
    while isinstance(function, partial):
        settings = {**function.keywords, **settings}
        function = function.func
    return settings


def keywords_of(function: Callable) -> dict:
    """The keyword-only arguments of a function: name to default, where there is one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def settings_of(function: Callable) -> dict:
    """The keyword-only arguments with which a function is called: bound ones, else defaults."""
    return {**keywords_of(unbound(function)), **bound_settings(function)}
