"""The benchmarks of speed run, and write what they print."""

import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from benchmarks import cell, compilation, gpu, hlo, inference, roofline, solver, timing, train_step
from benchmarks.analytic_cost import Work
from benchmarks.timing import in_loop
from benchmarks.workload import forced, random_batch
from configs import camvid_tiny, digits

MEASURED_ROOF = roofline._measured


@pytest.fixture(autouse=True)
def quick_roof(monkeypatch):
    """The measured one takes a second and says nothing about a test."""
    monkeypatch.setattr(roofline, "_measured", lambda precision: roofline.Roof(1e12, 1e11, "none"))


@pytest.mark.slow
def test_train_step(run, arguments):
    out, report = run(train_step, [*arguments, "--batch=4"])
    assert report["nfe"] == {"forward": 4, "backward": 2}  # forced, whatever the residual
    assert report["seconds"]["runs"] == 2
    median = report["seconds"]["median"]
    np.testing.assert_allclose(report["images_per_second"], 4 / median)
    assert f"{report['images_per_second']:.2f}" in out and "WARNING" not in out
    assert f"{report['memory']['planned_bytes'] / 1e9:.3f} GB" in out
    assert report["compile_s"] > 0
    xla, model = report["rates"]["xla"], report["rates"]["model"]
    # The norms' arithmetic counts in such a narrow network.
    assert 0.5 < xla["flops_per_second"] / model["flops_per_second"] < 3
    assert xla["bytes_per_second"] > model["bytes_per_second"]
    np.testing.assert_allclose(model["flops_share"], model["flops_per_second"] / 1e12)


def test_steps_that_were_not_taken_are_reported():
    report = {"nfe": {"forward": 4, "backward": 2}, "solver_steps": [3, 3]}
    assert "the backward solve after 2 evaluations, not 3" in train_step.check_steps(report)
    report["nfe"]["backward"] = 3
    assert train_step.check_steps(report) == ""


def test_inference(run, arguments):
    out, report = run(inference, [*arguments, "--batch=4", "--step_budgets=1,3"])
    found = [(row["batch"], row["step_budget"], row["nfe"]) for row in report["rows"]]
    assert found == [(1, 1, 2), (1, 3, 4), (4, 1, 2), (4, 3, 4)]
    assert report["images_per_second"] == report["rows"][-1]["images_per_second"]
    for row in report["rows"]:
        assert f"{row['images_per_second']:.2f}" in out
    with pytest.raises(ValueError, match=r"from 1 to the 3 steps.*got \[2, 9\]"):
        run(inference, [*arguments, "--forward_steps=3", "--step_budgets=2,9"])


@pytest.mark.slow
def test_cell(run, arguments):
    scales = {"channels": "(8,8)", "num_blocks": "(1,1)", "big_kernels": "(0,0)"}
    own = [f"--config.model.{name}={value}" for name, value in scales.items()]
    own += ["--config.model.head_channels=(2,4)", "--config.model.dropout=0.2"]
    own += ["--batch=2", "--applications=2"]
    out, report = run(cell, [*arguments, *own])
    for way in ("forward", "pullback"):
        seconds = report[way]["seconds"]
        parts = seconds["blocks"] + seconds["fusion"] + seconds["post-fusion"]
        np.testing.assert_allclose(parts, seconds["whole"])
        kinds = seconds["convolutions"] + seconds["group norms"] + seconds["everything else"]
        np.testing.assert_allclose(kinds, seconds["whole"])
        assert f"{1e3 * seconds['whole']:.3f}" in out


@pytest.mark.slow
def test_solver(run, arguments):
    out, report = run(solver, [*arguments, "--batch=4"])
    assert all(row["steps_taken"] == row["steps"] for row in report["rows"])
    assert {row["solver"] for row in report["rows"]} == {
        "broyden",
        "anderson",
        "fixed_point_iteration",
    }
    step = report["training_step"]
    assert step["nfe"] == {"forward": 4, "backward": 2}
    parts = step["parts_seconds"]
    assert all(taken > 0 for taken in parts.values())
    assert sum(parts.values()) <= step["traced_seconds"]
    own = parts["forward"] + parts["backward"] + parts["buffers"]
    np.testing.assert_allclose(step["solver_share"], own / step["traced_seconds"])
    assert f"{step['solver_share']:.1%} of" in out


@pytest.mark.slow
def test_compilation(run, tiny_config, monkeypatch):
    files = SimpleNamespace(import_module=lambda _: SimpleNamespace(get_config=lambda: tiny_config))
    monkeypatch.setattr(compilation, "importlib", files)
    out, report = run(compilation, ["--names=tiny,again", "--batch=4"])
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        assert row["config"] == "digits" and row["trace_s"] > 0 and row["first_run_s"] > 0
        assert f"{row['compile_s']:.1f}" in out


def test_loops_repeat_their_work():
    """XLA neither takes a loop's work out of it nor leaves any of it out."""
    a = jnp.ones((40, 40))

    def sorts(fixed, states):
        return [jnp.sort(fixed * state) for state in states]

    loop = in_loop(sorts, 20)
    np.testing.assert_allclose(loop(a, [a, a])[1], 1.0)
    program, entry = hlo.computations(loop.lower(a, [a, a]).compile().as_text())
    (body,) = hlo.loops(program, entry)
    assert sum(instruction.operation == "sort" for instruction in program[body]) == 2


def test_calls_take_turns(monkeypatch):
    """By a clock that only the calls move."""
    now, order = [0.0], []

    def call(name, seconds):
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = {"short": partial(call, "short", 1.0), "long": partial(call, "long", 9.0)}
    times = timing.measure_in_turn(calls, 3, min_seconds=1.5)
    assert order == 2 * ["short"] + 2 * ["long"] + 3 * ["short", "short", "long"]
    assert times == {"short": timing.Timing(1, 1, 1, 3), "long": timing.Timing(9, 9, 9, 3)}


def test_forced_config():
    config = forced(digits.get_config(), precision="bfloat16", forward_steps=7)
    assert config.precision == "bfloat16" and config.train.random_forward_delta == 0
    assert config.solver.forward.max_steps == 7 and config.solver.forward.tol == 0
    assert config.solver.backward.max_steps == digits.get_config().solver.backward.max_steps


def test_labels_of_segmentation():
    config = camvid_tiny.get_config()
    batch = jax.eval_shape(lambda: random_batch(config, 2))
    assert batch["label"].shape == batch["image"].shape[:3] == (2, *config.data.image_size)


def test_other_devices_are_measured():
    limit = MEASURED_ROOF("float32")
    assert 1e9 < limit.flops < 1e16 and 1e8 < limit.bandwidth < 1e14
    assert "128 MiB" in limit.source


def test_known_devices_are_not_measured(monkeypatch):
    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(roofline.jax, "devices", lambda: [Device()])
    assert roofline.roof("bfloat16").flops == 2 * roofline.roof("float32").flops - 1e12
    assert roofline.roof("float32").bandwidth == 4.8e12
    rates = roofline.beside_roof(Work(495e12, 2.4e12), 2.0, roofline.roof("float32"))
    assert rates["flops_share"] == 0.5 and rates["bytes_share"] == 0.25


PROGRAMS = [
    p.stem for p in sorted(Path(gpu.__file__).parent.glob("*.py")) if "__main__" in p.read_text()
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name):
    """A benchmark says how it is called, and what each flag of its own is for."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks.{name}" in module.__doc__
    values = flags.FlagValues()
    getattr(module, "define_own_flags", lambda values: None)(values)
    assert all(values[flag].help for flag in values)
