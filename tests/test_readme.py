"""The README is a promise: its example runs, and what it names is there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "w" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/\w+\.py|docs/\w+\.\w+", README))))
def test_the_files_it_names_exist(path):
    assert (REPOSITORY / path).exists()
