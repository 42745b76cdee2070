"""The shell commands of the pages: all are parsed by the programs they call, cheap ones run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from configs import digits
from mdeq_jax.engine.workdir import write_config
from tests.helpers.pages import PAGES, REPOSITORY, blocks, commands
from tests.helpers.tiny import TINY

COMMANDS = {
    name: [c for b in blocks(page) if b.language == "bash" for c in commands(b.text)]
    for name, page in PAGES.items()
}
SCRIPTS = ("train", "eval", "deploy", "export", "convert_torch_weights")
# Programs of others, whose arguments are not parsed here.
TOOLS = {"pytest", "ruff", "pyright", "pre-commit", "mkdocs", "tensorboard"}

# Commands of the pages that run, in this order, in one folder.
RUN = (
    "docs/index.md",
    "README.md",
    "docs/weights.md",
    "docs/guide.md",
    "docs/long_runs.md",
    "docs/language.md",
)
# The pages' configs made small, so that their commands run as they are.
SMALL = {
    "digits": {**TINY, "train.epochs": 0.2},
    "repmlp_digits": {"train.epochs": 0.2, "train.warmup_steps": 0},
    "pydoc_transformer": {
        "train.epochs": 0.03,
        "train.pretrain_steps": 5,
        "train.warmup_steps": 2,
    },
}
NOT_RUN = {
    r"^pip |^tensorboard ": "changes the environment, or serves until it is stopped",
    r"MDEQ_Small_cls|in_small|wikitext103": "needs released files, or compiles for minutes",
    r"--output=deployed": "needs the trained RepMLP of the guide",
}


def module_and_arguments(command):
    """The module that a command of Python runs, and its arguments."""
    words = [word for word in command if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "python", command
    if words[1] == "-m":
        return [words[2], *words[3:]]
    name = words[1].removesuffix(".py")
    assert name in SCRIPTS, command
    return [f"mdeq_jax.{name}", *words[2:]]


def is_python(command):
    return "python" in command[:2]


def test_the_programs_accept_the_commands(tmp_path):
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "digits_model").mkdir()  # as pretrained.save writes it
    write_config(tmp_path / "digits_model", digits.get_config())
    found = [(page, c) for page, cs in COMMANDS.items() for c in cs if is_python(c)]
    assert len(found) > 30
    bad = ["mdeq_jax.train", "--config=configs/digits.py", "--config.train.epoch=3"]
    result = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "helpers" / "parse_commands.py"],
        input=json.dumps([*(module_and_arguments(command) for _, command in found), bad]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    *errors, expected = json.loads(result.stdout)
    assert "Did you mean --config.train.epochs=3?" in expected
    assert not [(place, error) for place, error in zip(found, errors) if error]


def test_the_other_commands_are_known():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    markers = [m.partition(":")[0] for m in project["tool"]["pytest"]["ini_options"]["markers"]]
    for page, command in ((p, c) for p, cs in COMMANDS.items() for c in cs if not is_python(c)):
        text = " ".join(command)
        if extras := re.fullmatch(r"pip install -e \.\[([\w,]+)\]", text):
            assert set(extras[1].split(",")) <= project["project"]["optional-dependencies"].keys()
        elif command[0] == "bash":
            assert (REPOSITORY / command[1]).is_file(), page
        else:
            assert command[0] in TOOLS, (page, text)
            assert "-m" not in command or command[command.index("-m") + 1] in markers


def test_no_command_hides_in_another_block():
    for name, page in PAGES.items():
        for block in blocks(page):
            assert block.language in ("bash", "python", ""), name
            assert block.language or not re.match(r"(?:python|pip|import|from) ", block.text), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like a clone of the repository, with small configs."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("mdeq_jax", "docs", *(f"{script}.py" for script in SCRIPTS)):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    for name, fields in SMALL.items():
        lines = [f"    config.{field} = {value!r}\n" for field, value in fields.items()]
        with (folder / "configs" / f"{name}.py").open("a") as file:
            file.write("\n\nfull_config = get_config\n\n\ndef get_config():\n")
            file.write("".join(["    config = full_config()\n", *lines, "    return config\n"]))
    return folder


def run(words, folder):
    result = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"{words}\n{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_cheap_commands_run(name, folder):
    """`NOT_RUN` gives the reason for each command that is left out."""
    ran = 0
    for block in blocks(PAGES[name]):
        for command in commands(block.text) if block.language == "bash" else ():
            if not any(re.search(pattern, " ".join(command)) for pattern in NOT_RUN):
                run([sys.executable, *command[1:]], folder)
                ran += 1
        if block.language == "python" and name == "docs/weights.md":
            place = folder / "digits_export" if "from load" in block.text else folder
            run([sys.executable, "-c", block.text], place)
    assert ran
