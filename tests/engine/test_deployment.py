"""From a trained work directory to a deployed one that `evaluate` takes."""

import re

import pytest

from configs import repmlp_digits
from mdeq_jax.engine.deployment import deploy_workdir
from mdeq_jax.training import evaluate, train_and_evaluate
from tests.helpers.tiny import override

SMALL = {
    "model.channels": (8,),
    "model.num_blocks": (1,),
    "train.epochs": 1.0,
    "train.optimizer": "adamw",
    "train.learning_rate": 0.01,
    "train.mixup": 0.4,
    "train.cutmix": 1.0,
    "data.rand_augment": 1,
    "eval.every_epochs": 1.0,
    "log.tensorboard": False,
}


def check(config, tmp_path):
    """Trains, deploys and evaluates; returns the metrics of both forms and the summary."""
    trained, deployed = tmp_path / "trained", tmp_path / "deployed"
    train_and_evaluate(config, trained)
    summary = deploy_workdir(config, trained, deployed)
    merged = override(config.copy_and_resolve_references(), {"model.deployed": True})
    before, after = evaluate(config, trained), evaluate(merged, deployed)
    assert "eval/nfe" not in before and "eval/rel_residual" not in before
    assert before["eval/accuracy"] == after["eval/accuracy"]
    assert abs(before["eval/loss"] - after["eval/loss"]) < 1e-5
    assert "same prediction: 360 of 360" in summary
    difference = float(re.search(r"difference of the outputs: (\S+)", summary)[1])
    assert difference < 1e-5
    with pytest.raises(ValueError, match=r"model\.deployed: False there, True in this config"):
        evaluate(merged, trained)
    with pytest.raises(ValueError, match="deployed already"):
        deploy_workdir(merged, deployed, tmp_path / "twice")
    with pytest.raises(ValueError, match="holds checkpoints already: choose another --output"):
        deploy_workdir(config, trained, deployed)
    return before, summary


def test_trains_with_every_transform_deploys_and_evaluates(tmp_path):
    config = override(repmlp_digits.get_config(), SMALL)
    _, summary = check(config, tmp_path)
    assert "parameters: " in summary and "times as fast" in summary


@pytest.mark.slow
def test_digits_reach_975_and_keep_every_prediction(tmp_path):
    config = override(repmlp_digits.get_config(), {"log.tensorboard": False})
    metrics, _ = check(config, tmp_path)
    assert metrics["eval/accuracy"] >= 0.975
