"""Settings without effect are listed; those with one are not."""

import importlib
import pathlib

import pytest

from configs import default
from mdeq_jax import hardware
from mdeq_jax.engine import config_lint
from mdeq_jax.engine.config_lint import unused_settings
from mdeq_jax.implicit import GRADIENTS


def config_with(fields, name="digits"):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(fields)
    return config


def test_defaults_are_the_configs():
    config = default.get_config()
    for name, value in config_lint.DEFAULTS.items():
        part, field = name.split(".")
        assert config[part][field] == value, name
    assert config.solver.backward.to_dict() == config_lint.DEFAULT_BACKWARD


CONFIGS = [path.stem for path in pathlib.Path(default.__file__).parent.glob("*.py")]


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {"__init__", "default"}))
@pytest.mark.parametrize("training", [True, False])
def test_no_recipe_starts_with_a_list(name, training):
    """A released recipe holds its settings without effect as comments."""
    assert unused_settings(config_with({}, name), training=training) == []


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_backward_solve(gradient):
    lines = unused_settings(config_with({"gradient.name": gradient}), training=True)
    listed = any(line.startswith("solver.backward has no effect on training") for line in lines)
    assert listed == (gradient != "ift")
    own = [line for line in lines if line.startswith("solver.forward (name) has no effect")]
    assert len(own) == (gradient in ("unroll", "reversible"))
    assert len(lines) == listed + len(own)


def test_refined_shine_solves_backward():
    fields = {"gradient.name": "shine", "gradient.refine_steps": 3}
    (line,) = unused_settings(config_with(fields), training=True)
    assert line.startswith("solver.backward.max_steps=15 has no effect")
    assert "gradient.refine_steps=3" in line


CASES = [
    ({"model.final_conv_kernel": 3}, "model.final_conv_kernel=3 has", "'mdeq_classifier'", True),
    ({"data.data_dir": "/data"}, "data.data_dir='/data' has", "comes with scikit-learn", True),
    ({"data.num_workers": 4}, "data.num_workers=4 has", "held in memory", True),
    ({"train.nesterov": True}, "train.nesterov=True has", "train.optimizer is 'adam'", False),
    (
        {"train.momentum": 0.5, "train.nesterov": True},
        "train.momentum=0.5, train.nesterov=True have",
        "'adam'",
        False,
    ),
    (
        {"train.schedule": "constant", "train.end_learning_rate": 1e-4},
        "train.end_learning_rate=0.0001 has",
        "train.schedule is 'constant'",
        False,
    ),
    ({"train.pretrain_layers": 3}, "train.pretrain_layers=3 has", "no pretraining phase", False),
    (
        {"jacobian.frequency": 0.0, "jacobian.weight": 0.0, "jacobian.stop_epoch": 5},
        "jacobian.stop_epoch=5 has",
        "applies no Jacobian loss",
        False,
    ),
    ({"jacobian.weight": 0.0}, "jacobian.frequency=0.25 has", "is 0 throughout", False),
]


@pytest.mark.parametrize(("fields", "what", "why", "evaluation"), CASES)
def test_what_and_why(fields, what, why, evaluation):
    """In training, and in an evaluation if that would read it otherwise."""
    (line,) = unused_settings(config_with(fields), training=True)
    assert line.startswith(f"{what} no effect: ") and why in line and line.endswith(".")
    assert unused_settings(config_with(fields), training=False) == [line] * evaluation


def test_segmentation():
    fields = {"data.augment": False, "model.head_channels": (4,), "data.num_workers": 2}
    lines = unused_settings(config_with(fields, "camvid_tiny"), training=True)
    assert [line.split(" no effect")[0] for line in lines] == [
        "model.head_channels=(4,) has",
        "data.base_size=480, data.scale_factor=1 have",
    ]


def test_forward_settings_of_an_iteration_that_takes_none():
    fields = {"gradient.name": "unroll", "solver.forward.history_dtype": "bfloat16"}
    (line,) = unused_settings(config_with(fields), training=False)
    assert line.startswith("solver.forward (name, history_dtype) has no effect")


def test_pallas_kernels_on_cpus():
    config = config_with({"pallas": True})
    assert (
        "pallas=True has no effect: its kernels are for GPUs"
        in unused_settings(config, training=False)[-1]
    )
    with hardware.compiling_for("gpu"):
        assert unused_settings(config, training=False) == []
