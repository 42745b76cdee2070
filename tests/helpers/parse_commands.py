"""Parses command lines with the parsers of the programs that they call, and runs nothing.

    python tests/helpers/parse_commands.py < COMMANDS

Reads a JSON list of [module, argument, ...] and prints a JSON list of error messages, "" for a
command line that is accepted.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile

from absl import app, flags

import mdeq_jax.training  # noqa: F401 (imported once, for all commands)


def parse(module: str, arguments: list[str]) -> None:
    """Exits with 0 if the program accepts its arguments."""

    def run(main, argv=None, flags_parser=None):
        rest = (flags_parser or flags.FLAGS)(argv or sys.argv)
        sys.exit(f"left over: {rest[1:]}" if rest[1:] else 0)

    def parse_args(parser, args=None, namespace=None):
        original(parser, args, namespace)
        sys.exit(0)

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args, app.run = parse_args, run
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(f"{module} parses no arguments")


def error_of(module: str, arguments: list[str]) -> str:
    """The error message of a command line; each is parsed in a separate process."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                parse(module, arguments)
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, flush=True)
                os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return "" if status == 0 else output.read() or "no message"


if __name__ == "__main__":
    print(json.dumps([error_of(module, words) for module, *words in json.load(sys.stdin)]))
