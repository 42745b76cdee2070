"""The code blocks of the documentation pages."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(REPOSITORY)): path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: after the fence; empty for output.
        text: its lines.
    """

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def commands(text: str) -> list[list[str]]:
    """The commands of a `bash` block as words; the variables that are set for one come first."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [command for command in words if command]
