"""First mistakes at the command line: one line each, with what to type."""

import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from mdeq_jax.runtime import command_line

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def parse(monkeypatch):
    """Parses flags as a script in the repository would; returns the flags."""

    def run(*arguments, **options):
        values = flags.FlagValues()
        argv = [str(ROOT / "train.py"), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        config_flags.DEFINE_config_file("config", None, "a config", flag_values=values)
        command_line.define_path("workdir", "a folder", flag_values=values)
        command_line.parse_flags(argv, flag_values=values, **options)
        return values

    monkeypatch.chdir(ROOT)
    return run


def refusal(parse, *arguments):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "train.py: --config is missing. Type --config=configs/digits.py, or one of\n"),
        (["--config"], "--config is missing"),
        (
            ["--config=configs/digit.py"],
            "--config=configs/digit.py does not exist. Did you mean --config=configs/digits.py? ",
        ),
        (["--config", "digit"], "=digit does not exist. Did you mean --config=configs/digits.py"),
        (["--config=qqq.py"], "--config=qqq.py does not exist. There are\n"),
        (["--config=configs"], "--config=configs is a folder."),
        (
            ["--config=configs/digits.py", "--config.train.epoch=3"],
            "--config.train.epoch=3: configs/digits.py has no field train.epoch. Did you mean "
            "--config.train.epochs=3? config.train has accumulate_steps, ",
        ),
        (["--config=configs/digits.py", "--config.epochs=3"], "Did you mean --config.train.epochs"),
        (["--config=configs/digits.py", "--config.train.epochs.x=3"], "no field train.epochs.x"),
        (
            ["--config=configs/digits.py", "--noconfig.data.augmen"],
            "Did you mean --config.data.aug",
        ),
        (["--config=configs/digits.py", "--config.zzzzzz=3"], "The config has checkpoint, data, "),
        (["--config=configs/digits.py", "--workdr=x"], "Did you mean: workdir"),
        (["--config=configs/digits.py", "--config.train.epochs=three"], "three"),
        (["configs/digits.py", "--config=configs/digits.py"], "Type --config=configs/digits.py"),
    ],
)
def test_a_mistake_says_what_to_type(parse, arguments, answer):
    message = refusal(parse, *arguments)
    assert answer in message
    assert "Traceback" not in message and len(message.splitlines()[0]) < 700


def test_the_list_has_every_config_with_a_word_on_each(parse):
    lines = refusal(parse).splitlines()[1:]
    names = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "default"}
    assert {Path(line.split()[0]).stem for line in lines} == names
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("from configs import default\nconfig = default.get_config(\n", "SyntaxError"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named"),
        ("x = 1\n", "has no get_config()"),
        (
            "from configs import default\n\ndef get_config():\n"
            "    config = default.get_config().lock()\n    config.train.epoch = 3\n",
            "line 5: AttributeError",
        ),
    ],
)
def test_an_error_in_a_config_names_its_line(parse, tmp_path, text, answer):
    path = tmp_path / "mine.py"
    path.write_text(text)
    message = refusal(parse, f"--config={path}")
    assert str(path) in message and answer in message and len(message.splitlines()) == 1


def test_tilde_is_the_home_directory(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "mine.py"
    config.write_text((ROOT / "configs" / "digits.py").read_text())
    for arguments in (["--config=~/mine.py", "--workdir=~/run"], ["--config", "~/mine.py"]):
        values = parse(*arguments, "--config.train.epochs=3")
        assert values.config.train.epochs == 3
    assert parse(*["--config=~/mine.py", "--workdir=~/run"]).workdir == f"{tmp_path}/run"


def test_help_lists_the_configs(parse, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Trains.")
    with pytest.raises(SystemExit):
        parse("--help")  # absl's own flag, which `app.run` defines, prints the docstring
    doc = sys.modules["__main__"].__doc__
    assert "configs/digits.py" in doc and "scikit-learn's handwritten digits" in doc


def test_correct_flags_pass(parse):
    values = parse("--config=configs/digits.py", "--config.solver.forward.max_steps=3")
    assert values.config.solver.forward.max_steps == 3
    assert parse(config_required=False).config is None


def test_a_name_means_the_config_of_that_name(parse):
    for given in ("digits", "configs/digits.py"):
        values = parse(f"--config={given}", "--config.train.epochs=3")
        assert values["config"].value.name == "digits"
        assert values["config"].value.train.epochs == 3


def test_outside_the_repository_the_configs_are_those_of_the_package(tmp_path):
    folder = command_line.config_folder(str(tmp_path / "bin" / "mdeq-train"))
    assert folder == ROOT / "mdeq_jax" / "configs" and (folder / "default.py").is_file()
    assert command_line.config_folder(str(ROOT / "train.py")) == ROOT / "configs"


def test_a_flag_that_needs_another_is_refused_without_it():
    values = flags.FlagValues()
    flags.DEFINE_integer("generate", None, "a length", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of draws", flag_values=values)
    command_line.mark_needed("generate", ["temperature"], values)
    with pytest.raises(flags.Error, match="--temperature has no effect without --generate"):
        values(["eval.py", "--temperature=0"])
    values.unparse_flags()
    values(["eval.py", "--temperature=0", "--generate=5"])
    assert values.temperature == 0
