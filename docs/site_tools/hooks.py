"""MkDocs hooks: pages that are generated, and links that lead out of `docs/`."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from docs.site_tools import api_reference, config_reference


def on_files(files: Files, config) -> Files:
    """Adds the reference pages and the results."""
    pages = {
        "reference/config.md": config_reference.page(),
        "results.md": results(),
        "changelog.md": (REPOSITORY / "CHANGELOG.md").read_text(),
        **{f"reference/{name}.md": text for name, text in api_reference.pages().items()},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Links from a page in `docs/` as they are right on the site; no line break before a "%"."""
    markdown = markdown.replace("](../benchmarks/RESULTS.md", "](results.md")
    lines = markdown.split("\n")
    return "\n".join(x.replace(" %", "\u00a0%") if x.startswith("|") else x for x in lines)


def results() -> str:
    """`benchmarks/RESULTS.md`, whose files next to it are not on the site."""
    text = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    text = text.replace("](../docs/", "](")
    return re.sub(r"\[[^]]+\]\((measured/[^)]+)\)", r"`benchmarks/\1`", text)
