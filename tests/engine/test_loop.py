"""The whole run, in this process."""

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.data import Prefetcher, load_dataset
from mdeq_jax.engine import loop
from mdeq_jax.engine.checkpoint import Checkpoints
from mdeq_jax.engine.workdir import check_architecture, write_config
from mdeq_jax.models import build_model
from mdeq_jax.training import (
    Interrupted,
    TrainingDiverged,
    evaluate,
    predict_classes,
    train_and_evaluate,
)
from tests.helpers.tiny import SINGLE_SCALE

EXPECTED = {
    "step",
    "epoch",
    "phase",
    "eval/accuracy",
    "eval/loss",
    "eval/nfe",
    "eval/rel_residual",
    "eval/rel_residual_p90",
    "eval/rel_residual_max",
    "eval/unconverged",
    "eval/images_per_second",
    "eval/spectral_radius",
    "train/loss",
    "train/accuracy",
    "train/grad_norm",
    "train/grad_norm_max",
    "train/forward_nfe",
    "train/forward_rel_residual",
    "train/forward_rel_residual_max",
    "train/forward_unconverged",
    "train/backward_nfe",
    "train/backward_rel_residual",
    "train/skipped_updates",
    "train/backward_unconverged",
    "images_per_second",
    "learning_rate",
    "data_wait_share",
}


def metrics_of(workdir):
    """The lines of evaluations."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/loss" in line]


@pytest.fixture(scope="module")
def two_epochs(tiny_config, tmp_path_factory):
    """A run of two epochs without a stop: config, work directory, what it returned."""
    config = tiny_config(
        {
            "train.epochs": 2.0,
            "log.convergence_plot": True,
            "log.tensorboard": True,
            "log.every_steps": 4,
            "eval.spectral_radius_every_epochs": 2.0,
        }
    )
    workdir = tmp_path_factory.mktemp("two_epochs")
    return config, workdir, train_and_evaluate(config, workdir)


def test_leaves_what_it_promises(two_epochs):
    _, workdir, metrics = two_epochs
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines] == [11, 22]
    assert EXPECTED <= set(lines[-1])
    assert "eval/spectral_radius" not in lines[0] and lines[-1]["eval/spectral_radius"] > 0
    assert metrics == lines[-1]
    assert metrics["eval/examples"] == 360
    assert metrics["eval/nfe"] == 6 and 1 <= metrics["train/backward_nfe"] <= 6
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert (workdir / "convergence.png").stat().st_size > 10_000
    assert json.loads((workdir / "config.json").read_text())["model"]["channels"] == [8, 8]


def test_lines_between_evaluations(two_epochs):
    _, workdir, _ = two_epochs
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 11, 12, 16, 20, 22]
    assert {"train/loss", "learning_rate", "images_per_second", "phase"} <= set(lines[0])
    # Four steps each, not all since the last evaluation.
    assert lines[4]["train/loss"] < lines[0]["train/loss"]


def test_tensorboard_has_the_same_figures(two_epochs):
    _, workdir, _ = two_epochs
    (events,) = (workdir / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"eval/accuracy" in data and b"train/forward_rel_residual_max" in data


def test_the_best_is_kept(two_epochs, tiny_config):
    _, workdir, _ = two_epochs
    lines = metrics_of(workdir)
    best = max(lines, key=lambda line: (line["eval/accuracy"], -line["step"]))
    found = evaluate(tiny_config(), workdir, checkpoint="best")
    assert found["step"] == best["step"] and found["eval/accuracy"] == best["eval/accuracy"]
    assert evaluate(tiny_config(), workdir, checkpoint="11")["step"] == 11
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7 in .*only of \[11, 22\]"):
        evaluate(tiny_config(), workdir, checkpoint="7")
    with pytest.raises(ValueError, match="'latest', 'best' or a step; got 'newest'"):
        evaluate(tiny_config(), workdir, checkpoint="newest")


def test_sweep_of_solver_steps(two_epochs, tiny_config):
    _, workdir, metrics = two_epochs
    result = evaluate(tiny_config(), workdir, sweep_steps=[5, 1, 2])
    assert list(result["sweep"]) == [1, 2, 5]
    assert [figures["eval/nfe"] for figures in result["sweep"].values()] == [2, 3, 6]
    np.testing.assert_allclose(result["eval/loss"], metrics["eval/loss"], rtol=1e-6)
    assert (workdir / "sweep.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="sweep_steps must be at least 1; got 0"):
        evaluate(tiny_config(), workdir, sweep_steps=[0, 1])


def test_predicting_a_folder(two_epochs, tiny_config, tmp_path):
    """The evaluation images as files are given the classes that the evaluation counts."""
    _, workdir, _ = two_epochs
    split = load_dataset(tiny_config().data).eval
    (tmp_path / "images" / "more").mkdir(parents=True)
    for i, image in enumerate(split.images[:50]):
        folder = tmp_path / "images" / ("more" if i % 2 else "")
        cv2.imwrite(str(folder / f"{i:03}.png"), np.round(image * (255 / 16)).astype(np.uint8))
    output = tmp_path / "predictions.csv"
    assert predict_classes(tiny_config(), workdir, tmp_path / "images", output) == 50
    rows = {Path(row["file"]).stem: row for row in csv.DictReader(output.open())}
    model = build_model(tiny_config())
    batch, _ = split.make_batch(np.arange(50), (0, 0))
    logits = model.apply(final_variables(tiny_config(), workdir), batch["image"]).logits
    probabilities = np.asarray(jax.nn.softmax(logits))
    ours = [int(rows[f"{i:03}"]["class"]) for i in range(50)]
    # Pixels are rounded to 8 bits in the files.
    assert np.mean(ours == probabilities.argmax(1)) >= 0.96
    shares = [float(rows[f"{i:03}"]["probability"]) for i in range(50)]
    np.testing.assert_allclose(shares, probabilities.max(1), atol=0.02)
    (tmp_path / "images" / "000.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"000\.png: cannot be decoded"):
        predict_classes(tiny_config(), workdir, tmp_path / "images", output)
    skipping = tiny_config({"data.on_error": "skip"})
    assert predict_classes(skipping, workdir, tmp_path / "images", output) == 49
    with pytest.raises(FileNotFoundError, match="holds no images"):
        (tmp_path / "none").mkdir()
        predict_classes(tiny_config(), workdir, tmp_path / "none", output)


def test_the_same_call_after_the_end_evaluates(two_epochs, capsys):
    config, workdir, metrics = two_epochs
    again = train_and_evaluate(config, workdir)
    assert again["eval/accuracy"] == metrics["eval/accuracy"]
    assert "Going on from step 22 of 22" in capsys.readouterr().out
    assert len(metrics_of(workdir)) == 2


def test_evaluate_honours_solver_settings(two_epochs, tiny_config):
    _, workdir, metrics = two_epochs
    same = evaluate(tiny_config(), workdir)
    np.testing.assert_allclose(same["eval/loss"], metrics["eval/loss"], rtol=1e-6)
    assert same["step"] == 22
    fewer = evaluate(tiny_config({"solver.forward.max_steps": 2}), workdir)
    assert fewer["eval/nfe"] == 3
    assert fewer["eval/rel_residual"] > same["eval/rel_residual"]


def test_padding_does_not_count(two_epochs, tiny_config):
    _, workdir, metrics = two_epochs
    padded = evaluate(tiny_config({"eval.batch_size": 250}), workdir)
    assert padded["eval/examples"] == 360
    np.testing.assert_allclose(padded["eval/loss"], metrics["eval/loss"], rtol=1e-5)


def final_variables(config, workdir):
    model = build_model(config)
    images = jnp.zeros((1, *config.data.image_size, 3))
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_variables(like)[0]


def test_going_on_is_as_if_it_had_not_stopped(two_epochs, tmp_path, monkeypatch):
    """Ctrl-C in the second epoch, then the same call again: the same weights to the bit."""
    config, workdir, metrics = two_epochs

    class Interrupting(Prefetcher):
        batches = 0

        def __next__(self):
            self.batches += 1
            if self.batches == 14:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    monkeypatch.setattr(loop, "Prefetcher", Interrupting)
    with pytest.raises(Interrupted, match=r"SIGINT at step 14.*goes on from there"):
        train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    assert [line["step"] for line in metrics_of(tmp_path)] == [11]
    resumed = train_and_evaluate(config, tmp_path)
    assert resumed["eval/loss"] == metrics["eval/loss"]
    jax.tree.map(
        np.testing.assert_array_equal,
        final_variables(config, tmp_path),
        final_variables(config, workdir),
    )


BAD = [
    ("train.batch_size", 0, "train.batch_size=0 must be a multiple of the 1 devices"),
    ("train.batch_size", 2000, "only 1437 training examples"),
    ("model.num_classes", 9, "model.num_classes=9, but digits has 10 classes"),
    ("train.pretrain_steps", 5, "train.pretrain_layers of at least 1"),
    ("train.epochs", 0.0, "train.epochs must be above 0"),
    ("train.learning_rate", 0.0, "train.learning_rate must be positive"),
    ("jacobian.weight", 1.0, "no effect with jacobian.frequency=0"),
    ("log.every_steps", 0, "log.every_steps must be at least 1"),
    ("train.optimizer", "adamw", r"train.optimizer must be one of .*; got 'adamw'"),
    ("train.schedule", "exponential", r"train.schedule must be one of .*; got 'exponential'"),
    ("train.schedule", "step", "needs train.decay_epochs"),
    ("train.decay_power", 0.5, r"decay_power=0.5 has no effect on train.schedule='cosine'"),
    ("train.accumulate_steps", 3, "times the 3 parts of train.accumulate_steps"),
    ("train.ema_decay", 1.0, r"train.ema_decay must be in \(0, 1\)"),
    ("train.max_skipped_updates", 0, "train.max_skipped_updates must be at least 1"),
    ("train.warmup_steps", 99, "train.warmup_steps must be at least 0 and below the 11 steps"),
    ("data.name", "mnist", "config.data.name is 'mnist', but must be one of"),
    ("data.image_size", (16, 16), r"image_size is \(16, 16\)"),
    ("solver.forward.name", "newton", "solver.forward.name must be one of"),
    ("model.channels", (8, 10), "multiple of model.num_groups"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_bad_settings_before_anything_is_compiled(tiny_config, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(tiny_config({field: value}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_workdir_of_another_architecture(two_epochs, tiny_config):
    _, workdir, _ = two_epochs
    other = tiny_config({"model.channels": (8, 16), "model.expansion": 3})
    for run in (train_and_evaluate, evaluate):
        with pytest.raises(ValueError, match=r"another architecture") as error:
            run(other, workdir)
        assert "model.channels: [8, 8] there, [8, 16] in this config" in str(error.value)
        assert "model.expansion: 2 there, 3 in this config" in str(error.value)


def test_a_workdir_of_another_optimiser(two_epochs, tiny_config):
    _, workdir, _ = two_epochs
    with pytest.raises(ValueError, match=r"was trained with train\.optimizer='adam'"):
        train_and_evaluate(tiny_config({"train.optimizer": "sgd"}), workdir)


def test_a_workdir_without_a_checkpoint_may_change(tiny_config, tmp_path):
    write_config(tmp_path, tiny_config({"model.channels": (8, 16)}))
    check_architecture(tmp_path, tiny_config())


def test_evaluating_an_empty_workdir(tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        evaluate(tiny_config(), tmp_path)


def test_everything_else_at_once(tiny_config, tmp_path, monkeypatch, caplog):
    """A truncated gradient, pretraining, the Jacobian loss with random limits, dropout, SGD, ..."""

    class Counting(Prefetcher):
        compiled: ClassVar = []  # programs so far, at the start of each step

        def __next__(self):
            messages = [record.getMessage() for record in caplog.records]
            self.compiled.append(sum("Finished XLA compilation" in text for text in messages))
            return super().__next__()

    monkeypatch.setattr(loop, "Prefetcher", Counting)
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
            "train.optimizer": "sgd",
            "train.nesterov": True,
            "train.weight_decay": 1e-4,
            "train.grad_clip": 1.0,
            "train.warmup_steps": 2,
            "train.label_smoothing": 0.1,
            "train.accumulate_steps": 2,
            "train.ema_decay": 0.5,
        }
    )
    with jax.log_compiles():
        metrics = train_and_evaluate(config, tmp_path)
    # The first step of each phase is compiled, and none again for another limit or draw.
    first_steps = [1, config.train.pretrain_steps + 1]
    compiled = np.diff(Counting.compiled)
    assert [step for step, count in enumerate(compiled, start=1) if count] == first_steps
    assert metrics["train/jacobian_loss"] > 0
    assert np.isfinite(metrics["train/loss"])
    assert metrics["train/backward_nfe"] == 1
    assert metrics["eval/nfe"] == 6  # the random limit is of training alone
    # What was evaluated is the average, and `evaluate` takes it too.
    np.testing.assert_allclose(evaluate(config, tmp_path)["eval/loss"], metrics["eval/loss"])
    average = final_variables(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "11" / "average")
    assert not np.allclose(
        average["params"]["head"]["classifier"]["kernel"],
        final_variables(config, tmp_path)["params"]["head"]["classifier"]["kernel"],
    )
    with pytest.raises(ValueError, match=r"trained with train\.ema_decay=0\.5; None cannot go on"):
        train_and_evaluate(
            tiny_config({**SINGLE_SCALE, "train.optimizer": "sgd", "train.epochs": 2.0}), tmp_path
        )


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
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
