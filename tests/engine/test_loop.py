"""A whole run in this process: training, evaluations, an interrupt, the same call again."""

import json
import signal

import jax
import numpy as np
import pytest

from mdeq_jax.data import Prefetcher
from mdeq_jax.engine import run
from mdeq_jax.engine.report import summarize_steps
from mdeq_jax.engine.review import review
from mdeq_jax.engine.train_program import TrainProgram
from mdeq_jax.training import Interrupted, evaluate, train_and_evaluate
from tests.helpers.tiny import SINGLE_SCALE
from tests.helpers.workdirs import final_variables, read_evaluations, read_metrics

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


@pytest.fixture(scope="module")
def small_config(tiny_config):
    """Makes the config of the smallest network, with further fields set."""
    return lambda fields=(): tiny_config({**SINGLE_SCALE, **dict(fields)})


@pytest.fixture(scope="module")
def counted_steps():
    """The number of steps that each line of `two_epochs` is over."""
    return []


@pytest.fixture(scope="module")
def two_epochs(small_config, tmp_path_factory, counted_steps):
    """A run of two epochs without a stop: config, work directory, what it returned."""
    config = small_config(
        {
            "train.epochs": 2.0,
            "log.convergence_plot": True,
            "log.tensorboard": True,
            "log.every_steps": 4,
            "eval.spectral_radius_every_epochs": 2.0,
        }
    )
    workdir = tmp_path_factory.mktemp("two_epochs")

    def summarize(reports, task):
        counted_steps.append(len(reports))
        return summarize_steps(reports, task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "summarize_steps", summarize)
        return config, workdir, train_and_evaluate(config, workdir)


def test_leaves_what_it_promises(two_epochs):
    _, workdir, metrics = two_epochs
    lines = read_evaluations(workdir)
    assert [line["step"] for line in lines] == [11, 22]
    assert EXPECTED <= set(lines[-1])
    assert "eval/spectral_radius" not in lines[0] and lines[-1]["eval/spectral_radius"] > 0
    assert metrics == lines[-1]
    assert metrics["eval/examples"] == 360
    assert metrics["eval/nfe"] == 6 and 1 <= metrics["train/backward_nfe"] <= 6
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert (workdir / "convergence.png").stat().st_size > 10_000
    assert json.loads((workdir / "config.json").read_text())["model"]["channels"] == [8]


def test_lines_between_evaluations(two_epochs):
    _, workdir, _ = two_epochs
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [4, 8, 11, 12, 16, 20, 22]
    assert {"train/loss", "learning_rate", "images_per_second", "phase"} <= set(lines[0])
    assert lines[4]["train/loss"] < lines[0]["train/loss"]


def test_each_step_counts_in_one_line(two_epochs, counted_steps):
    """A line of an evaluation is over the steps since the line before, like every other line."""
    assert counted_steps == [4, 4, 3, 1, 4, 4, 2]  # evaluated after steps 11 and 22


def test_tensorboard_has_the_same_metrics(two_epochs):
    _, workdir, _ = two_epochs
    (events,) = (workdir / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"eval/accuracy" in data and b"train/forward_rel_residual_max" in data


def test_the_best_is_kept(two_epochs, small_config):
    _, workdir, _ = two_epochs
    lines = read_evaluations(workdir)
    best = max(lines, key=lambda line: (line["eval/accuracy"], -line["step"]))
    found = evaluate(small_config(), workdir, checkpoint="best")
    assert found["step"] == best["step"] and found["eval/accuracy"] == best["eval/accuracy"]
    assert evaluate(small_config(), workdir, checkpoint="11")["step"] == 11
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7 in .*only of \[11, 22\]"):
        evaluate(small_config(), workdir, checkpoint="7")
    with pytest.raises(ValueError, match="'latest', 'best' or a step; got 'newest'"):
        evaluate(small_config(), workdir, checkpoint="newest")


def test_a_review_agrees_with_the_evaluation(two_epochs):
    _, workdir, metrics = two_epochs
    found = review(workdir, max_examples=500)
    assert found.confusion.sum() == 360 and found.confusion.shape == (10, 10)
    np.testing.assert_allclose(np.trace(found.confusion) / 360, metrics["eval/accuracy"], atol=1e-9)
    losses = [example.loss for example in found.examples]
    assert losses == sorted(losses, reverse=True) and losses[0] > metrics["eval/loss"]
    assert "all 360 evaluation images" in found.summary


def test_sweep_of_solver_steps(two_epochs, small_config):
    _, workdir, metrics = two_epochs
    result = evaluate(small_config(), workdir, sweep_steps=[5, 1, 2])
    assert list(result["sweep"]) == [1, 2, 5]
    assert [row["eval/nfe"] for row in result["sweep"].values()] == [2, 3, 6]
    np.testing.assert_allclose(result["eval/loss"], metrics["eval/loss"], rtol=1e-6)
    assert (workdir / "sweep.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="sweep_steps must be at least 1; got 0"):
        evaluate(small_config(), workdir, sweep_steps=[0, 1])


def test_the_same_call_after_the_end_evaluates(two_epochs, capsys):
    config, workdir, metrics = two_epochs
    again = train_and_evaluate(config, workdir)
    assert again["eval/accuracy"] == metrics["eval/accuracy"]
    assert "Resuming from step 22 of 22" in capsys.readouterr().out
    assert len(read_evaluations(workdir)) == 2


def test_evaluate_honours_solver_settings(two_epochs, small_config):
    _, workdir, metrics = two_epochs
    fewer = evaluate(small_config({"solver.forward.max_steps": 2}), workdir)
    assert fewer["eval/nfe"] == 3 and fewer["step"] == 22
    assert fewer["eval/rel_residual"] > metrics["eval/rel_residual"]


def test_padding_does_not_count(two_epochs, small_config):
    _, workdir, metrics = two_epochs
    padded = evaluate(small_config({"eval.batch_size": 250}), workdir)
    assert padded["eval/examples"] == 360
    np.testing.assert_allclose(padded["eval/loss"], metrics["eval/loss"], rtol=1e-5)


def test_resuming_is_as_if_it_had_not_stopped(two_epochs, tmp_path, monkeypatch):
    """Ctrl-C in the second epoch, then the same call again: the same weights to the bit."""
    config, workdir, metrics = two_epochs

    class Interrupting(Prefetcher):
        batches = 0

        def __next__(self):
            self.batches += 1
            if self.batches == 14:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    monkeypatch.setattr(run, "Prefetcher", Interrupting)
    with pytest.raises(Interrupted, match=r"SIGINT at step 14.*resumes from there"):
        train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    assert [line["step"] for line in read_evaluations(tmp_path)] == [11]
    with monkeypatch.context() as patched:  # nothing is compiled before this is refused
        patched.setattr(TrainProgram, "compile_early", lambda *_: pytest.fail("compiled"))
        with pytest.raises(ValueError, match="saved data state has seed = 0, this run has 1"):
            other = config.copy_and_resolve_references()
            other.seed = 1
            train_and_evaluate(other, tmp_path)
    resumed = train_and_evaluate(config, tmp_path)
    assert resumed["eval/loss"] == metrics["eval/loss"]
    jax.tree.map(
        np.testing.assert_array_equal,
        final_variables(config, tmp_path),
        final_variables(config, workdir),
    )


def test_a_workdir_of_another_architecture(two_epochs, small_config):
    _, workdir, _ = two_epochs
    other = small_config({"model.channels": (16,), "model.expansion": 3})
    for use in (train_and_evaluate, evaluate):
        with pytest.raises(ValueError, match="another architecture") as error:
            use(other, workdir)
        assert "model.channels: [8] there, [16] in this config" in str(error.value)
        assert "model.expansion: 2 there, 3 in this config" in str(error.value)


def test_a_workdir_of_another_optimiser(two_epochs, small_config):
    _, workdir, _ = two_epochs
    with pytest.raises(ValueError, match=r"was trained with train\.optimizer='adam'"):
        train_and_evaluate(small_config({"train.optimizer": "sgd"}), workdir)
