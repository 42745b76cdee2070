"""Flags that the scripts share, and one line for each first mistake at the command line."""

import ast
import difflib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

flags.disclaim_key_flags()  # the flags are those of the script that defines them

_HELP = re.compile(r"--?(help|helpshort|helpfull|helpxml|h|\?)")
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(=.*)?", re.DOTALL)
_CONFIG = re.compile(r"--?config(=(.*))?", re.DOTALL)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)

    def flag_type(self) -> str:
        return "path"


def run(
    main: Callable,
    module: str,
    *,
    config_required: bool = True,
    prepare: Callable[[list[str]], list[str]] | None = None,
) -> None:
    """Parses the command line and calls the `main` of a script.

    Args:
        main: takes the arguments that are left.
        module: name of the module that defines the flags and whose docstring `--help` prints.
        config_required: whether `--config` must be given.
        prepare: changes the arguments before they are parsed; it may raise ValueError, OSError or
            ImportError for one that cannot be used.
    """
    script: Any = sys.modules[module]
    sys.modules["__main__"].__doc__ = script.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    if prepare is not None:
        try:
            sys.argv = prepare(sys.argv)
        except (ValueError, OSError, ImportError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
    app.run(main, flags_parser=partial(parse_flags, config_required=config_required))


def config_folder(script: str) -> Path:
    """The folder of the configs: next to a script of the repository, else in the package."""
    own = Path(script).resolve().parent / "configs"
    return own if own.is_dir() else Path(__file__).parent.parent / "configs"


def define_path(
    name: str, help_text: str, default: str | None = None, **options
) -> flags.FlagHolder:
    """Defines a flag that names a file or a folder; `~` is the home directory, as in a shell."""
    serializer = flags.ArgumentSerializer()
    return flags.DEFINE(_PathParser(), name, default, help_text, serializer=serializer, **options)


def define_device_per_core(**options) -> flags.FlagHolder:
    """Defines `--device_per_core`, for `compilation.choose_device_per_core`."""
    return flags.DEFINE_bool(
        "device_per_core",
        False,
        "On a CPU: make a device of each core, or of as many as divide the batch. Faster for small "
        "states (docs/devices.md).",
        **options,
    )


def define_config(help_text: str = "Config file, e.g. configs/digits.py") -> flags.FlagHolder:
    """Defines `--config` and its overrides `--config.FIELD=VALUE`."""
    return config_flags.DEFINE_config_file(
        "config", None, f"{help_text}; --config.FIELD=VALUE overrides a field."
    )


def parse_flags(
    argv: list[str], *, config_required: bool = True, flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Parses the flags of a script; for `app.run(main, flags_parser=parse_flags)`.

    `--help` lists the configs too. A mistake ends the script with the flag that is wrong, the
    choices and the flag to type.

    Args:
        argv: the script and its arguments. `--config` is a file, or the name of one of the
            configs in `config_folder`.
        config_required: whether `--config` must be given.
        flag_values: the flags; others than absl's only in tests.

    Returns:
        `argv` without the flags.
    """
    folder = config_folder(argv[0])
    if any(_HELP.fullmatch(argument) for argument in argv[1:]):
        main = sys.modules["__main__"]
        configs = list_configs(folder).replace("%", "%%")  # absl fills in the script's name
        main.__doc__ = f"{main.__doc__ or ''}\n\nConfigs:\n{configs}\n"
    else:
        try:
            argv = _checked(argv, folder, config_required)
        except ValueError as error:
            sys.exit(f"{Path(argv[0]).name}: {error}")
    try:
        rest = flag_values(argv)
    except flags.Error as error:
        sys.exit(f"{Path(argv[0]).name}: {error} (--help lists the flags)")
    if len(rest) > 1:
        meant = f"--config={rest[1]}" if rest[1].endswith(".py") else f"--FLAG={rest[1]}"
        sys.exit(
            f"{Path(argv[0]).name}: {rest[1]!r} belongs to no flag. Type {meant} "
            "(--help lists the flags)."
        )
    return rest


def mark_needed(
    needed: str, names: Iterable[str], flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Refuses the flags `names` without the flag `needed`, without which they have no effect."""
    for name in names:
        flags.register_multi_flags_validator(
            [needed, name],
            lambda values, name=name: (
                values[needed] is not None or values[name] == flag_values[name].default
            ),
            f"--{name} has no effect without --{needed}.",
            flag_values=flag_values,
        )


def list_configs(folder: Path) -> str:
    """The configs of a folder, one per line, each with the first line of its docstring."""
    lines = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("__init__", "default"):
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines[_shown(path)] = doc.partition("\n")[0]
    width = max(map(len, lines), default=0)
    return "\n".join(f"  {path:<{width}}  {doc}" for path, doc in lines.items())


def _checked(argv: list[str], folder: Path, config_required: bool) -> list[str]:
    """`argv` with the path of the config expanded; raises ValueError for a mistake."""
    argv = list(argv)
    given = None
    for i, argument in enumerate(argv[1:], start=1):
        if argument == "--":
            break
        if match := _CONFIG.fullmatch(argument):
            attached = match[1] is not None
            if not attached and i + 1 == len(argv):
                break
            given = _path_of(match[2] if attached else argv[i + 1], folder)
            argv[i if attached else i + 1] = f"--config={given}" if attached else given
    if given is None:
        if config_required:
            raise ValueError(
                f"--config is missing. Type --config={_shown(folder / 'digits.py')}, or one of\n"
                f"{list_configs(folder)}"
            )
        return argv
    path, *config_string = given.split(":", 1)
    if not os.path.isfile(path):
        raise ValueError(_no_such_config(given, folder))
    config = _load(path, config_string)
    for argument in argv[1:]:
        if match := _OVERRIDE.fullmatch(argument):
            _check_field(config, match[2], match[3] or "", path)
    return argv


def _path_of(given: str, folder: Path) -> str:
    """The file that `--config` means: a path, or the name of a config, each with its `:STRING`."""
    name, colon, config_string = given.partition(":")
    if re.fullmatch(r"\w+", name) and (path := folder / f"{name}.py").is_file():
        return f"{_shown(path)}{colon}{config_string}"
    return os.path.expanduser(given)


def _no_such_config(given: str, folder: Path) -> str:
    stems = [path.stem for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    near = difflib.get_close_matches(Path(given).stem, stems, n=1)
    what = "is a folder" if os.path.isdir(given) else "does not exist"
    meant = f"Did you mean --config={_shown(folder / near[0])}.py? " if near else ""
    return f"--config={given} {what}. {meant}There are\n{list_configs(folder)}"


def _load(path: str, config_string: list[str]) -> ConfigDict:
    """The config of a file; an error in it is reported with its line."""
    try:
        return runpy.run_path(path)["get_config"](*config_string)
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.abspath(frame.filename) == os.path.abspath(path)
        ]
        line = f", line {lines[-1]}" if lines else ""
        what = "has no get_config()" if error.args == ("get_config",) else str(error)
        raise ValueError(
            f"{path}{line}: {type(error).__name__}: {' '.join(what.split())}"
        ) from error


def _check_field(config: ConfigDict, field: str, value: str, path: str) -> None:
    """Raises ValueError unless a config has a field; suggests the nearest one."""
    node = config
    for name in re.sub(r"\[.*?\]", "", field).split("."):
        if not isinstance(node, ConfigDict) or name not in node:
            break
        node = node[name]
    else:
        return
    fields = list(_fields(config))
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
    # A field of the right name in another group is nearer than a similar path.
    last = field.rpartition(".")[2]
    same = [name for name in fields if name.rpartition(".")[2] == last]
    nearest = (same or near)[:1]
    group = nearest[0].rpartition(".")[0] if nearest else field.rpartition(".")[0]
    siblings = [name for name in fields if group and name.rpartition(".")[0] == group]
    meant = f"Did you mean --config.{nearest[0]}{value}? " if nearest else ""
    raise ValueError(
        f"--config.{field}{value}: {path} has no field {field}. {meant}"
        f"{f'config.{group}' if group in _groups(fields) else 'The config'} has "
        f"{', '.join(name.rpartition('.')[2] for name in siblings or config)}."
    )


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _groups(fields: list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in fields} - {""}


def _shown(path: Path) -> str:
    """The shorter of the absolute path and that from the current directory."""
    return min(os.path.relpath(path), str(path), key=len)
