"""The documentation: every public name and config field has its place, and the English is clean."""

import importlib
import os
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from docs.site_tools import api_reference, config_reference, style
from mdeq_jax.configs import default
from mdeq_jax.configs.fields.models import MODEL_FIELDS

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"


def paths(config, prefix=""):
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from paths(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("family", sorted(MODEL_FIELDS))
def test_every_field_is_in_the_reference(family):
    described = {field.path for field in config_reference.fields()}
    described |= {field.path for field in config_reference.fields_of_models()[family]}
    assert set(paths(default.get_config(family))) == described
    page = config_reference.page()
    assert all(f"| `{path}` |" in page for path in described)


def test_comments_and_defaults_are_those_of_the_file():
    fields = {field.path: field for field in config_reference.fields()}
    assert fields["train.epochs"].default == "50.0"
    assert fields["solver.forward.max_steps"].default == "18"
    assert fields["solver.backward.max_steps"].default == "20"
    assert fields["train.grad_clip"].default == "None (float)"
    assert fields["train.grad_clip"].comment.startswith("global norm")
    assert fields["gradient.name"].comment.startswith('"ift", "phantom"')
    assert "benchmarks/RESULTS.md" in fields["pallas"].comment  # comments above a field


@pytest.mark.parametrize("package", api_reference.PACKAGES)
def test_every_public_name_has_a_page(package):
    page = api_reference.pages()[package.removeprefix("mdeq_jax.").replace(".", "_")]
    module = importlib.import_module(package)
    names = api_reference.public_names(module)
    assert names
    for name, path in names.items():
        assert f"::: {path}\n" in page
        *parts, last = path.split(".")
        assert getattr(importlib.import_module(".".join(parts)), last) is getattr(module, name)


def test_every_package_with_public_names_is_listed():
    packages = {
        f"mdeq_jax.{path.parent.name}"
        for path in (REPOSITORY / "mdeq_jax").glob("*/__init__.py")
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE)
    }
    assert packages and packages <= api_reference.PACKAGES.keys()


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    for page in DOCS.glob("*.md"):
        assert f" {page.name}" in navigation, page


PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted(DOCS.glob("*.md")) + sorted((REPOSITORY / "benchmarks").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(page):
    """As on GitHub, which has no generated pages and does not follow linked folders."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        path = Path(os.path.abspath(page.parent / link))
        assert path.exists(), link
        parts = path.relative_to(REPOSITORY)
        assert path.resolve() == REPOSITORY.resolve() / parts, f"{link}: behind a symbolic link"


def test_no_phrase_of_the_list_is_left():
    """A person reads the count of each: `python -m docs.site_tools.style`."""
    assert not style.findings()


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("An own cell in 15 lines.", "own"),
        ("A process of its own.", "of its own"),
        ("The original beside ours.", "beside"),
        ("The table\ntells which.", "tells"),
        ("Where no sample fails, it costs nothing.", "Where no sample fails,"),
        ("Computed only where needed.", "only where"),
        ("Kept where it is read.", "where it is"),
        ("It is large, for it holds all steps.", ", for it"),
        ("Done so that a fits.\nAnd so that b fits.", "so that"),
    ],
)
def test_the_list_finds_what_it_is_for(text, phrase):
    assert [found for _, found, _ in style.phrases(text)] == [phrase]


def test_the_list_leaves_what_is_right():
    text = """Each runs in its own process, at its
    own speed. The folder where examples are stored. 0 where the label is ignored.
    `where it is` is code. One so that.

    Another so that, in another paragraph. Where the time goes: a heading."""
    assert not style.phrases(text)
