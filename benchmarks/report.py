"""Flags, tables and files that the speed benchmarks share."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mdeq_jax.runtime import command_line

flags.disclaim_key_flags()  # `--help` shows them as those of the benchmark


def define_flags(
    values: flags.FlagValues, *, batch: int = 32, solves: Sequence[str] = ("forward", "backward")
) -> None:
    """Defines the flags that the benchmarks of speed share.

    Args:
        values: where they are defined.
        batch: default batch size.
        solves: the solves whose number of steps can be forced.
    """

    def define_integer(name, default, text):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)

    config_flags.DEFINE_config_file(
        "config", None, "The config; --config.FIELD=VALUE overrides a field.", flag_values=values
    )
    define_integer("batch", batch, "Images in a batch, over all devices.")
    define_integer("repeats", 7, "Timed runs; medians and quartiles are reported.")
    for way in solves:
        define_integer(f"{way}_steps", None, f"Forced {way} solver steps; default: the config's.")
    flags.DEFINE_enum(
        "precision",
        None,
        ["float32", "bfloat16"],
        "Of the network; default: the config's.",
        flag_values=values,
    )
    command_line.define_path("json", "File for the report, as JSON.", flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]

    def line(cells):
        first = str(cells[0]).ljust(widths[0])
        rest = (str(cell).rjust(width) for cell, width in zip(cells[1:], widths[1:]))
        return "| " + " | ".join((first, *rest)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((line(header), rule, *map(line, rows)))


def write_json(path: str | None, report: dict) -> None:
    """Writes a report, whole or not at all, its folder too; nothing if there is no path."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(f"{path}.unfinished")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(unfinished, path)
    print(f"Wrote {path}.")
