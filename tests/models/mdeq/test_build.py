import pytest

from mdeq_jax import hardware
from mdeq_jax.models import build_model

BAD = [
    ("model.name", "mdeq", r"model.name must be one of .*; got 'mdeq'"),
    ("precision", "float16", r"precision must be one of .*; got 'float16'"),
    ("model.channels", (8, 8, 8), r"model.num_blocks must have one entry for each of the 3"),
    ("model.channels", (8, 10), r"multiple of model.num_groups=4.*got 10"),
    ("model.channels", (), "model.channels needs one entry"),
    ("model.num_groups", 5, "model.num_groups must be even"),
    ("model.head_channels", (2,), r"model.head_channels must have one entry .*; got \(2,\)"),
    ("model.dropout", 1.0, r"model.dropout must be in \[0, 1\); got 1.0"),
    ("model.num_classes", 0, "model.num_classes must be at least 1"),
    ("model.downsample_times", -1, "must not be negative; got -1"),
    ("data.image_size", (8, 9), "multiples of 2 .*; got 8x9"),
    ("solver.forward.name", "newton", r"solver.forward.name must be one of .*; got 'newton'"),
    ("solver.backward.stop_mode", "max", r"solver.backward.stop_mode must be one of"),
    ("solver.forward.max_steps", 0, "solver.forward: max_steps must be at least 1"),
    ("solver.forward.m", 6, r"solver.forward.m=6 has no effect on 'broyden'"),
    ("gradient.name", "exact", r"gradient.name must be one of .*; got 'exact'"),
    ("solver.backward.tol", -1.0, "solver.backward: tol must not be negative"),
    ("solver.backward.history_dtype", "float33", "solver.backward: history_dtype must be"),
    ("gradient.linearize_at", "x", "gradient: linearize_at must be one of"),
    ("model.num_blocks", (0, 1), "model.num_blocks must be at least 1"),
    ("gradient.steps", 5, r"gradient.steps=5 has no effect on 'ift'"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_settings_that_cannot_work(small_config, field, value, message):
    *path, last = field.split(".")
    part = small_config
    for name in path:
        part = part[name]
    part[last] = value
    with pytest.raises(ValueError, match=message):
        build_model(small_config)


def test_unknown_fields_are_refused(small_config):
    with pytest.raises(AttributeError, match="max_step"):
        small_config.lock().solver.forward.max_step = 3


def test_settings_reach_the_solver(small_config):
    small_config.solver.forward.name = "anderson"
    small_config.solver.forward.m = 4
    small_config.gradient.name = "phantom"
    small_config.gradient.steps = 3
    model = build_model(small_config)
    assert model.f_solver.keywords == {"max_steps": 18, "tol": 1e-3, "stop_mode": "rel", "m": 4}
    assert model.gradient.keywords == {"steps": 3}


def test_pallas_reaches_cell_and_solvers(small_config):
    small_config.pallas = True
    model = build_model(small_config)
    assert model.cell.spec.pallas and model.f_solver.keywords["pallas"]
    assert model.gradient.keywords["b_solver"].keywords["pallas"]
    small_config.solver.forward.name = "anderson"  # which has none
    assert "pallas" not in build_model(small_config).f_solver.keywords
    refused = pytest.raises(ValueError, match=r"pallas=True .* JAX runs on 'tpu'")
    with hardware.compiling_for("tpu"), refused:
        build_model(small_config)
