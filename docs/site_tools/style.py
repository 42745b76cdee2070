"""Counts phrases that the style of this project avoids: `python -m docs.site_tools.style`.

It reads the pages, the docstrings of the package and of the benchmarks, and the headers and
comments of the configs, from which the reference is made. Code and quotations in backticks are
left out. A few rules are narrower than the style, to find little that is right:

- "own" may follow a possessive ("its own process"), unless the phrase ends there ("of its own").
- "where" may name a place or the elements of an array ("0 where the label is ignored"). It is
  found at the beginning of a condition ("Where no sample fails, ..."), after "only", "even",
  "except" and the like, and in pages before "it is", "they are" and the like.
- "so that" may occur once in a paragraph.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_POSSESSIVE = "".join(rf"(?<!{word})" for word in (r"\bits", "their", "your", "his", "'s", "s'"))
# Phrase -> what to write instead.
PHRASES = {
    r"of our own|of its own make": "custom, this project's",
    rf"{_POSSESSIVE}(?<!\s)\s+own\b(?!ed|s)": "custom, separate, this project's",
    r"\bof (?:its|their|your)\s+own(?=\s*(?:[.,;:)|(]|and\b|or\b|that\b|in\b))": "separate",
    r"\bbeside\b": "compared with, next to",
    r"\b(?:tells?|told|says?|said)\b": "reports, shows, gives, describes",
    r"in the place of|in place of": "instead of, replaces",
    r"what it is that|that which": "the noun itself",
    r"not to be had|has not got|\b(?:is|are|was|were) not to be\b": "is unavailable, must not",
    r"by (?:kernels|XLA) (?:of|itself)": "with Pallas kernels, computed by XLA",
    r"\bsave for\b|\bbut for\b|\bsave that\b": "except",
    r"\ba lie\b|can be (?:believed|trusted)|be trusted": "wrong, valid, converged",
    r"finds? out|sees? to it": "checks, ensures",
    r"(?:^|[.;:]\s+)Where (?!in |to )[^.#|:]{3,90},": "if, when",
    r"\b(?:only|except|even|just|exactly|but|not)\s+where\b": "only if, only when",
}
PAGE_PHRASES = {
    r"\bwhere\s+(?:it|they|that|there|this|one)\s+(?:is|are|was|were|has|have|does)\b": "if, when",
    r"[,;:] for (?:it|they|there|this|these|each of|neither) ": "because; a new sentence",
}
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/*.md")


def findings() -> list[str]:
    """A line for each phrase found: file, line, phrase, what to write instead."""
    return [
        f"{name}:{line}: {phrase!r}; write: {better}"
        for name, first, text in texts()
        for line, phrase, better in phrases(text, first, is_page=name.endswith(".md"))
    ]


def phrases(text: str, first: int = 1, *, is_page: bool = True) -> list[tuple[int, str, str]]:
    """The phrases in a text: line, phrase, what to write instead."""
    plain = re.sub(r"`[^`]*`", lambda match: "_" + "\n" * match[0].count("\n"), text)
    found = []
    for pattern, better in (PHRASES | PAGE_PHRASES if is_page else PHRASES).items():
        for match in re.finditer(pattern, plain, re.IGNORECASE if pattern.islower() else 0):
            found.append((match.start(), " ".join(match[0].split()), better))
    for paragraph in re.finditer(r"(?:[^\n]*\S[^\n]*\n?)+", plain):
        again = [match.start() for match in re.finditer(r"\bso that\b", paragraph[0])][1:]
        found += [(paragraph.start() + start, "so that", "two sentences") for start in again]
    return [(first + plain.count("\n", 0, at), *rest) for at, *rest in sorted(found)]


def texts() -> Iterator[tuple[str, int, str]]:
    """File, first line and text of each page, docstring and comment of a config."""
    for pattern in PAGES:
        for path in sorted(REPOSITORY.glob(pattern)):
            text = re.sub(
                r"```.*?```", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.DOTALL
            )
            yield str(path.relative_to(REPOSITORY)), 1, text
    for folder in ("mdeq_jax", "benchmarks", "configs"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            name, source = str(path.relative_to(REPOSITORY)), path.read_text()
            for node in ast.walk(ast.parse(source)):
                documented = ast.FunctionDef | ast.ClassDef | ast.Module
                if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
                    yield name, node.body[0].lineno, text
            if folder == "configs":
                for token in tokenize.generate_tokens(io.StringIO(source).readline):
                    if token.type == tokenize.COMMENT:
                        yield name, token.start[0], token.string


if __name__ == "__main__":
    lines = findings()
    print("\n".join([*lines, f"{len(lines)} phrases to change"]))
