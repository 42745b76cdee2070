"""The guide is a promise too: its programs run, one after the other, and do what it says."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.slow
def test_the_programs_run(capsys):
    names = {}
    for program in PROGRAMS:
        exec(compile(program, "guide.md", "exec"), names)
    assert float(names["accuracy"]) > 0.8  # chance is 0.1
    assert float(names["converged"]) > 0.9
    printed = capsys.readouterr().out
    for text in ("accuracy", "converged", "radius up to", "settled on one eigenvector"):
        assert text in printed
    assert names["logits"].shape == (2, 10)  # of the deployed network
    assert names["merged"]["cell"].keys() == {"fc3", "global_perceptron"}
    assert float(names["deq_accuracy"]) > 0.8 and float(names["deq_converged"]) > 0.9
    assert float(names["difference"]) < 1e-3  # the tolerance of the solves
    assert len(PROGRAMS) == 5


def test_the_model_has_the_lines_it_is_said_to_have():
    model = PROGRAMS[0].split("\nsolver = ")[1].split("\nimages, labels = ")[0]
    lines = len([line for line in model.splitlines() if line.strip()])
    assert f"in {lines} lines" in GUIDE and f"the {lines} lines from `solver` to `step`" in GUIDE


def test_the_files_it_names_exist():
    for path in re.findall(r"configs/\w+\.py", GUIDE):
        assert (REPOSITORY / path).exists()
    for link in re.findall(r"\]\((\w+\.\w+)\)", GUIDE):
        assert (REPOSITORY / "docs" / link).exists()


def test_the_fields_it_names_exist():
    from configs import default

    config = default.get_config()
    fields = re.findall(r"`((?:solver|gradient|jacobian|train|eval)\.[\w.]+)[=`]", GUIDE)
    assert len(fields) > 8
    for field in fields:
        part = config
        for key in field.split("."):
            assert key in part, field
            part = part[key]
