"""Settings that cannot work are refused before anything is compiled."""

import pytest

from mdeq_jax.engine.workdir import check_architecture, write_config
from mdeq_jax.training import evaluate, train_and_evaluate

BAD = [
    ("train.batch_size", 0, "train.batch_size=0 must be a multiple of the 1 devices"),
    ("train.batch_size", 2000, "only 1437 training examples"),
    ("model.num_classes", 9, "model.num_classes=9, but digits has 10 classes"),
    ("train.pretrain_steps", 5, "train.pretrain_layers of at least 1"),
    ("train.epochs", 0.0, "train.epochs must be above 0"),
    ("train.learning_rate", 0.0, "train.learning_rate must be positive"),
    ("jacobian.weight", 1.0, "no effect with jacobian.frequency=0"),
    ("log.every_steps", 0, "log.every_steps must be at least 1"),
    ("train.optimizer", "lion", r"train.optimizer must be one of .*; got 'lion'"),
    ("train.schedule", "exponential", r"train.schedule must be one of .*; got 'exponential'"),
    ("train.schedule", "step", "needs train.decay_epochs"),
    ("train.decay_power", 0.5, r"decay_power=0.5 has no effect on train.schedule='cosine'"),
    ("train.accumulate_steps", 3, "times the 3 parts of train.accumulate_steps"),
    ("train.ema_decay", 1.0, r"train.ema_decay must be in \(0, 1\)"),
    ("train.max_skipped_updates", 0, "train.max_skipped_updates must be at least 1"),
    ("train.warmup_steps", 99, "train.warmup_steps must be at least 0 and below the 11 steps"),
    ("train.epochs", 0.01, r"train.epochs=0.01 of 11 steps each is no step .* at least 0.091"),
    ("train.momentum", 5.0, r"train.momentum must be in \[0, 1\); got 5.0"),
    ("eval.every_epochs", -1.0, "eval.every_epochs must be above 0; got -1.0"),
    ("checkpoint.every_epochs", 0.0, "checkpoint.every_epochs must be above 0; got 0.0"),
    ("eval.batch_size", 0, "eval.batch_size must be at least 1, or None; got 0"),
    ("seed", -1, "seed must be at least 0; got -1"),
    ("solver.forward.max_steps", 0, "solver.forward.max_steps must be at least 1; got 0"),
    ("data.image_size", (8,), r"data.image_size must be \(height, width\); got \(8,\)"),
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


def test_a_work_directory_with_a_broken_config(tiny_config, tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"model": {"na')
    with pytest.raises(ValueError, match=r"config\.json is not the config of a model"):
        evaluate(tiny_config(), tmp_path)


def test_a_workdir_without_a_checkpoint_may_change(tiny_config, tmp_path):
    write_config(tmp_path, tiny_config({"model.channels": (8, 16)}))
    check_architecture(tmp_path, tiny_config())


def test_evaluating_an_empty_workdir(tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        evaluate(tiny_config(), tmp_path)
