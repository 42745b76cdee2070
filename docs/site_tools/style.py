"""Counts phrases that the style of this project avoids: `python -m docs.site_tools.style`.

Pages and docstrings are read. Code and quotations in backticks are not.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Phrase -> what to write instead.
PHRASES = {
    r"of our own|of its own make": "custom, this project's",
    r"(?:program|table|log|plot|script|file)s? (?:tells?|told|says?|said)": "reports, shows",
    r"in the place of|in place of": "instead of, replaces",
    r"what it is that|that which": "the noun itself",
    r"not to be had|has not got": "is unavailable, does not support",
    r"by (?:kernels|XLA) (?:of|itself)": "with Pallas kernels, computed by XLA",
    r"\bsave for\b|\bbut for\b": "except",
    r"\ba lie\b|can be (?:believed|trusted)|be trusted": "wrong, valid, converged",
    r"finds? out|sees? to it": "checks, ensures",
}
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/*.md")


def findings() -> list[str]:
    """A line for each phrase found: file, line, phrase, what to write instead."""
    found = []
    for name, first, text in _texts():
        plain = re.sub(r"`[^`]*`", lambda match: "\n" * match[0].count("\n"), text)
        for pattern, better in PHRASES.items():
            for match in re.finditer(pattern, plain, re.IGNORECASE):
                line = first + plain.count("\n", 0, match.start())
                found.append(f"{name}:{line}: {match[0]!r}; write: {better}")
    return found


def _texts() -> Iterator[tuple[str, int, str]]:
    """File, first line and text of each page and docstring."""
    for pattern in PAGES:
        for path in sorted(REPOSITORY.glob(pattern)):
            text = re.sub(
                r"```.*?```", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.DOTALL
            )
            yield str(path.relative_to(REPOSITORY)), 1, text
    for path in sorted((REPOSITORY / "mdeq_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            documented = ast.FunctionDef | ast.ClassDef | ast.Module
            if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
                first = node.body[0].lineno
                yield str(path.relative_to(REPOSITORY)), first, text


if __name__ == "__main__":
    lines = findings()
    print("\n".join([*lines, f"{len(lines)} phrases to change"]))
