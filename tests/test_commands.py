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
from tests.helpers import page_data
from tests.helpers.pages import PAGES, REPOSITORY, blocks, commands
from tests.helpers.synthetic_images import SHARED_DATA
from tests.helpers.tiny import SINGLE_SCALE, TINY

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
    "docs/devices.md",
    "docs/gradients.md",
)
# Those that need data, and the data sets of `SHARED_DATA` that they are run on.
RUN_ON_DATA = {
    "docs/data.md": ("imagenet_samples", "camvid", "tfds"),
    "docs/segmentation.md": ("camvid",),
}
SMALL_CELL = {
    **SINGLE_SCALE,
    "model.num_groups": 4,
    "model.expansion": 1,
    "solver.forward.name": "fixed_point_iteration",  # quick to compile, as is the gradient
    "solver.forward.max_steps": 3,
    "gradient.name": "one_step",
    "jacobian.weight": 0.0,
    "jacobian.frequency": 0.0,
    "train.epochs": 1.0,
    "train.pretrain_steps": 0,
    "eval.every_epochs": 1.0,
    "checkpoint.every_epochs": 1.0,
    "log.tensorboard": False,
    "log.convergence_plot": False,
}
SMALL_MAPS = {
    **{k: v for k, v in SMALL_CELL.items() if k != "model.head_channels"},
    "train.batch_size": 2,
    "eval.batch_size": 1,
    "data.image_size": (32, 32),
    "data.num_workers": 0,
    "eval.scales": (0.25,),
}
# The pages' configs made small, so that their commands run as they are.
SMALL = {
    "digits": {**TINY, **SINGLE_SCALE, "train.epochs": 0.2},
    "cifar10_tiny": {
        **SMALL_CELL,
        "model.downsample_times": 2,
        "train.pretrain_layers": 2,
        "train.batch_size": 17,
    },
    "camvid_tiny": SMALL_MAPS,
    "own_segmentation": SMALL_MAPS,
    "repmlp_digits": {"train.epochs": 0.2, "train.warmup_steps": 0},
    "pydoc_transformer": {
        "train.epochs": 0.03,
        "train.pretrain_steps": 5,
        "train.warmup_steps": 2,
    },
}
# Arguments added to commands with these words: they take a large data set, or compile much.
QUICK_TO_COMPILE = (
    "--config.solver.forward.name=fixed_point_iteration",
    "--config.gradient.name=one_step",
)
ADDED = {
    "--config.data.data_dir=/data/tfds": ["--config.train.epochs=0.001"],
    "--workdir=runs/digits_4_devices": QUICK_TO_COMPILE,
    "--workdir=/shared/runs/digits_2_hosts": QUICK_TO_COMPILE,
    "benchmarks.gradients": ["--examples=8", "--exact_steps=20", "--repeats=1"],
    "benchmarks.reversible_drift": ["--examples=8", "--steps=5", "--beta=0.5"],
}
NOT_RUN = {
    r"^pip |^tensorboard ": "changes the environment, or serves until it is stopped",
    r"MDEQ_Small_cls|in_small|wikitext103": "needs released files, or compiles for minutes",
    r"benchmarks.truncated_solves": "compiles as much as benchmarks.gradients",
    r"--torch_file": "needs a released file, and 500 steps in float64",
    r"mdeq_jax.data.prepare": "downloads a data set",
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
        elif command[:2] == ["pip", "install"]:
            assert set(command[2:]) <= TOOLS, (page, text)
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
    (folder / "prompts.txt").write_text("Return the\n\nThis module\nA class\n")
    return folder


@pytest.fixture(scope="module")
def places(folder, tmp_path_factory):
    """What the pages' placeholders stand for here."""
    data = tmp_path_factory.mktemp("data")
    page_data.write_flowers(data / "flowers")
    page_data.write_streets(data / "streets")
    texts = (block.text for block in blocks(PAGES["docs/data.md"]))
    (classes,) = (text for text in texts if text.startswith("id,name,color,ignored\n"))
    (data / "streets" / "classes.csv").write_text(classes)
    page_data.write_camvid(data / "camvid")
    page_data.write_drive(folder / "drive.mp4")
    return {
        **{f"/data/{name}": str(data / name) for name in ("flowers", "streets", "camvid")},
        "/data/tfds": str(SHARED_DATA / "tfds"),
    }


def start(words, folder, places=()):
    """Starts a command of a page; the variables that are set for it come first."""
    words = [*words, *(word for key in ADDED if key in words for word in ADDED[key])]
    for old in places:
        words = [word.replace(old, places[old]) for word in words]
    count = words.index("python")
    return subprocess.Popen(
        [sys.executable, *words[count + 1 :]],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            **dict(word.split("=", 1) for word in words[:count]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, f"{process.args}\n{output}"
    return output


def run_commands(name, folder, places=()):
    """Runs the commands of a page; those of one run on several hosts run together."""
    ran = 0
    for block in blocks(PAGES[name]):
        found = commands(block.text) if block.language == "bash" else ()
        found = [c for c in found if not any(re.search(p, " ".join(c)) for p in NOT_RUN)]
        if "--coordinator" in block.text:
            processes = [start(command, folder, places) for command in found]
            assert len([finish(process) for process in processes]) == 2
        else:
            for command in found:
                finish(start(command, folder, places))
        if block.language == "python" and name == "docs/weights.md":
            place = folder / "digits_export" if "from load" in block.text else folder
            finish(start(["python", "-c", block.text], place))
        ran += len(found)
    assert ran


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_cheap_commands_run(name, folder):
    """`NOT_RUN` gives the reason for each command that is left out."""
    address = f"127.0.0.1:{page_data.free_port()}"
    run_commands(name, folder, {"/shared/runs": "runs", "10.0.0.1:1234": address})


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_ON_DATA)
def test_the_commands_run_on_real_data(name, folder, request):
    for data in RUN_ON_DATA[name]:
        if not (SHARED_DATA / data).is_dir():
            pytest.skip(f"real data are not here: {SHARED_DATA / data}")
    run_commands(name, folder, request.getfixturevalue("places"))
