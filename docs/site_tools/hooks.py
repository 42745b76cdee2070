"""MkDocs hooks: pages that are generated, and links that lead out of `docs/`."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from docs.site_tools import api_reference, config_reference

# File of the repository, as a page in `docs/` links it -> page of the site.
PAGES_OF_FILES = {
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/RESULTS.md": "results.md",
    "../configs/default.py": "reference/config.md",
}


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
    markdown = without_measured(markdown)
    markdown = re.sub(r"\]\((\.\./[^)#]+)", lambda link: f"]({page_of(link[1])}", markdown)
    lines = markdown.split("\n")
    return "\n".join(x.replace(" %", "\u00a0%") if x.startswith("|") else x for x in lines)


def page_of(path: str) -> str:
    """The page of the site for a file outside `docs/`; modules have that of their package."""
    packages = api_reference.PACKAGES
    module = path.removeprefix("../").removesuffix(".py").replace("/", ".")
    for package in (module, module.rpartition(".")[0]):
        if package in packages:
            return f"reference/{api_reference.page_name(package)}.md"
    return PAGES_OF_FILES.get(path, path)


def results() -> str:
    """`benchmarks/RESULTS.md`, with the links of the site."""
    text = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    return without_measured(text.replace("](../docs/", "]("))


def without_measured(text: str) -> str:
    """Paths instead of links to `benchmarks/measured/`, whose files are not on the site."""
    link = r"\[[^]]+\]\((?:\.\./benchmarks/)?(measured/[^)]+)\)"
    return re.sub(link, r"`benchmarks/\1`", text)
