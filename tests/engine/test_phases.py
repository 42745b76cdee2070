"""Settings that change what a step does: phases, random limits, a moving average, bad updates."""

import itertools
import shutil

import chex
import jax
import numpy as np
import pytest

from mdeq_jax.data import Prefetcher
from mdeq_jax.engine import run
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.checkpoint_folder import BEST
from mdeq_jax.runtime import devices
from mdeq_jax.training import TrainingDiverged, evaluate, train_and_evaluate
from tests.helpers.tiny import SINGLE_SCALE
from tests.helpers.workdirs import final_variables, read_evaluations, read_metrics

MAPPED = "Finished XLA compilation of jit(_fun)"  # a mapped step, not the log's own arithmetic


def test_each_phase_is_compiled_once(tiny_config, tmp_path, monkeypatch, caplog, capsys):
    """Not again for another limit, mask or draw; and each compilation is announced."""
    compiled = []  # number of programs at the start of each step, as two threads compile them

    def num_compiled():
        return sum(MAPPED in record.getMessage() for record in caplog.records)

    class Counting(Prefetcher):
        def __next__(self):
            compiled.append(num_compiled())
            return super().__next__()

    monkeypatch.setattr(run, "Prefetcher", Counting)
    devices._copy.cache_clear()  # an earlier test may have compiled it
    config = tiny_config(
        {
            **SINGLE_SCALE,
            "gradient.name": "neumann",
            "gradient.steps": 2,
            "model.dropout": 0.1,
            "jacobian.weight": 0.5,
            "jacobian.frequency": 0.5,
            "train.random_forward_delta": 2,
            "train.pretrain_steps": 2,
            "train.pretrain_layers": 1,
            "log.every_steps": 2,
        }
    )
    jax.config.update("jax_log_compiles", True)
    try:
        metrics = train_and_evaluate(config, tmp_path)
    finally:
        jax.config.update("jax_log_compiles", False)
    done = config.train.pretrain_steps + 1  # one step of each phase
    assert compiled[done] >= 3  # the copy of the state to the devices, and both phases
    assert num_compiled() == 4  # and the evaluation, which a thread compiles at any time
    lines = read_metrics(tmp_path)
    phases = [line["phase"] for line in lines]
    assert phases == ["pretraining", *["equilibrium"] * 5]
    assert max(line["train/jacobian_loss"] for line in lines) > 0
    assert np.isfinite(metrics["train/loss"])
    assert metrics["train/backward_nfe"] == 1
    assert metrics["eval/nfe"] == 6  # the random limit is of training alone
    out = capsys.readouterr().out
    for step in ("pretraining step", "training step with the Jacobian loss", "evaluation step"):
        assert out.count(f"ing the {step}: ") == 1  # "Compiling" or "Preparing"
        assert out.count(f"ed the {step} ") == 1  # "Compiled" or "Loaded"


def test_the_moving_average_is_evaluated(tiny_config, tmp_path):
    fields = {**SINGLE_SCALE, "gradient.name": "one_step", "train.optimizer": "sgd"}
    config = tiny_config({**fields, "train.ema_decay": 0.5})
    metrics = train_and_evaluate(config, tmp_path)
    np.testing.assert_allclose(evaluate(config, tmp_path)["eval/loss"], metrics["eval/loss"])
    average = final_variables(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "11" / "average")
    latest = final_variables(config, tmp_path)
    kernels = [tree["params"]["head"]["classifier"]["kernel"] for tree in (average, latest)]
    assert not np.allclose(*kernels)
    with pytest.raises(ValueError, match=r"train\.ema_decay=0\.5; None cannot resume"):
        train_and_evaluate(tiny_config({**fields, "train.epochs": 2.0}), tmp_path)


def test_an_absurd_learning_rate(tiny_config, tmp_path):
    """It stops, says what to try, and no checkpoint holds what is not a number."""
    config = tiny_config(
        {
            **SINGLE_SCALE,
            "gradient.name": "one_step",
            "train.learning_rate": 1e30,
            "train.schedule": "constant",
            "train.max_skipped_updates": 3,
            "checkpoint.every_epochs": 0.1,
        }
    )
    message = r"not finite in 3 steps in a row .*Try a lower train\.learning_rate"
    with pytest.raises(TrainingDiverged, match=message):
        train_and_evaluate(config, tmp_path)
    variables = final_variables(config, tmp_path)
    chex.assert_tree_all_finite(variables)


@pytest.mark.parametrize("bad_steps", [(1, 2, 3), (3,)])
def test_a_skipped_last_step_is_saved_if_its_evaluation_is_finite(
    tiny_config, tmp_path, monkeypatch, bad_steps
):
    """A batch with a NaN says nothing of the weights; and what is put off is not forgotten."""
    numbers, to_devices = itertools.count(1), devices.to_devices

    def spoilt(batch):
        if next(numbers) in bad_steps:
            batch = batch | {"image": np.full_like(batch["image"], np.nan)}
        return to_devices(batch)

    monkeypatch.setattr(devices, "to_devices", spoilt)
    fields = {"gradient.name": "one_step", "train.epochs": 3 / 11, "train.max_skipped_updates": 9}
    config = tiny_config({**SINGLE_SCALE, **fields})
    train_and_evaluate(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["train/skipped_updates"] == len(bad_steps)
    for folder in ("checkpoints", "best"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["3"]


@pytest.mark.parametrize("epochs", [4 / 11, 5 / 11], ids=["at the end", "before"])
def test_an_evaluation_that_was_interrupted_is_made_up_for(tiny_config, tmp_path, capsys, epochs):
    """A kill after the checkpoint of step 4, whose line and best network are then missing."""
    fields = {"gradient.name": "one_step", "eval.every_epochs": 2 / 11, "train.epochs": 4 / 11}
    config = tiny_config({**SINGLE_SCALE, **fields, "train.schedule": "constant"})
    train_and_evaluate(config, tmp_path)
    first, last = read_evaluations(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"step": 4, "tr')
    shutil.rmtree(tmp_path / "best")
    config.train.epochs = epochs
    capsys.readouterr()
    metrics = train_and_evaluate(config, tmp_path)
    changed = f"last saved: train.epochs was {4 / 11}, is {epochs}."
    assert (changed in capsys.readouterr().out) == (epochs != 4 / 11)
    evaluations = read_evaluations(tmp_path)
    assert [line["step"] for line in evaluations] == [2, 4, 5][: round(11 * epochs) - 2]
    assert evaluations[0] == first and evaluations[1]["eval/loss"] == last["eval/loss"]
    assert metrics["eval/loss"] == evaluations[-1]["eval/loss"]
    with Checkpoints(tmp_path, folder=BEST, write=False) as best:
        assert best.best_score() == max(line["eval/accuracy"] for line in evaluations[1:])


def test_a_run_that_ends_without_numbers_warns(tiny_config, tmp_path, capsys):
    """Its only update makes the weights too large; the others are skipped."""
    fields = {"gradient.name": "one_step", "train.epochs": 3 / 11, "train.learning_rate": 1e30}
    fields |= {"train.schedule": "constant", "log.convergence_plot": False}
    metrics = train_and_evaluate(tiny_config({**SINGLE_SCALE, **fields}), tmp_path)
    assert not np.isfinite(metrics["eval/loss"]) and not list((tmp_path / "best").iterdir())
    out = capsys.readouterr().out
    assert "Warning: the last step was skipped" in out and "checkpoints holds no checkpoint" in out
    assert f"Wrote {tmp_path}/metrics.jsonl.\n" in out
