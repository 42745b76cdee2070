"""The optional settings of a solver or gradient, checked against its own signature."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def chosen_options(
    function: Callable, settings, where: str, *, common: tuple[str, ...] = ("name",)
) -> dict[str, Any]:
    """The settings that are not None, each of which must be an argument of `function`.

    Args:
        function: a solver or a gradient; its keyword-only arguments are its options.
        settings: a mapping with `name`, and options, None if not set.
        where: name of `settings` in error messages.
        common: names in `settings` that are not options.

    Raises:
        ValueError: a setting that `function` does not have.
    """
    parameters = inspect.signature(function).parameters.values()
    accepted = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    names = sorted(set(settings) - set(common))
    for name in names:
        if settings[name] is not None and name not in accepted:
            own = [other for other in names if other in accepted]
            raise ValueError(
                f"{where}.{name}={settings[name]!r} has no effect on {settings['name']!r}, "
                f"whose own settings are {own}. Unset it, or choose another {where}.name."
            )
    return {name: settings[name] for name in names if settings[name] is not None}


def try_out(where: str, function: Callable[[jax.Array], Any]) -> None:
    """Traces `function` on a state of one number, which refuses bad values before compilation.

    Raises:
        ValueError: the function's own, with `where` before its message.
    """
    try:
        jax.eval_shape(function, jax.ShapeDtypeStruct((1, 1), jnp.float32))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_choice(where: str, value, choices) -> None:
    """Refuses a value that is not among the choices.

    Raises:
        ValueError: lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{where} must be one of {sorted(choices)}; got {value!r}.")
