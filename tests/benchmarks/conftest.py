"""Running a benchmark's `main` on a network of the smallest size."""

import json

import pytest
from absl import flags

from configs import digits

# One resolution: a third of the compiler's work of two.
TINY = {
    "model.channels": (8,),
    "model.num_blocks": (1,),
    "model.big_kernels": (0,),
    "model.head_channels": (2,),
    "model.num_groups": 4,
    "model.expansion": 2,
    "model.final_channels": 16,
    "solver.forward.max_steps": 3,
    "solver.backward.max_steps": 2,
    "jacobian.frequency": 0.0,
}


@pytest.fixture
def arguments():
    """The smallest network, as arguments."""
    overrides = (f"--config.{name}={value}".replace(" ", "") for name, value in TINY.items())
    return ["--config=configs/digits.py", *overrides, "--repeats=2"]


@pytest.fixture
def tiny_config():
    """The smallest network, as a config."""
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(module, arguments)`: what `main` printed, and the report that it wrote."""

    def call(module, arguments):
        path = tmp_path / "folder" / "report.json"
        argv = ["benchmark", f"--json={path}", *arguments]
        monkeypatch.setattr("sys.argv", argv)  # where overrides of a config are read
        values = flags.FlagValues()
        module.define_own_flags(values)
        values(argv)
        module.main(argv, values)
        return capsys.readouterr().out, json.loads(path.read_text())

    return call
