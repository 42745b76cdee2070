"""The Python blocks of the documentation pages run, one after the other."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
TESTED_ELSEWHERE = {
    "guide.md": "test_guide.py",
    "extending.md": "engine/test_extending.py",
    "weights.md": "test_commands.py",  # between its commands, which train and export
}


def programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


PAGES = [p for p in sorted(DOCS.glob("*.md")) if p.name not in TESTED_ELSEWHERE and programs(p)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_programs_run(page, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # some set it
    names = {}
    for program in programs(page):
        exec(compile(program, page.name, "exec"), names)


def test_the_other_tests_exist():
    for page, test in TESTED_ELSEWHERE.items():
        assert page.removesuffix(".md") in (Path(__file__).parent / test).read_text()


def test_pages_with_programs_are_found():
    assert {"concepts.md", "from_pytorch.md"} <= {page.name for page in PAGES}
