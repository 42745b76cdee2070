"""Losses, schedules, optimisers and reports on their own."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mdeq_jax.engine.report import describe_evaluation, summarize
from mdeq_jax.engine.schedules import jacobian_weight, learning_rate
from mdeq_jax.engine.state import build_optimizer
from mdeq_jax.engine.step import Report
from mdeq_jax.engine.writers import MetricsWriter, finite
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.classification.losses import correct_top_k, cross_entropy


def train_settings(**fields):
    settings = default.get_config().train
    settings.update(fields)
    return settings


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing, x64):
    torch = pytest.importorskip("torch")
    logits, labels = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 3, 1, 1, 2, 0])
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none", label_smoothing=smoothing
    )
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(ours, theirs.numpy())


def test_top_k_gives_nothing_for_a_tie():
    logits = jnp.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    labels = jnp.array([0, 1, 0])
    np.testing.assert_array_equal(correct_top_k(logits, labels, 1), [1, 0, 0])
    np.testing.assert_array_equal(correct_top_k(logits, labels, 3), [1, 1, 1])
    np.testing.assert_array_equal(correct_top_k(jnp.full((2, 3), jnp.nan), labels[:2], 1), [0, 0])


def test_cosine_schedule_is_pytorchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=1e-6)
    ours = learning_rate(train_settings(learning_rate=0.1), 40)
    for step in range(40):
        np.testing.assert_allclose(ours(step), optimizer.param_groups[0]["lr"], rtol=1e-4)
        optimizer.step()
        schedule.step()


def test_warm_up():
    rate = learning_rate(train_settings(learning_rate=0.1, warmup_steps=10), 100)
    np.testing.assert_allclose(rate(5), 0.05, rtol=1e-6)
    np.testing.assert_allclose(rate(10), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rate(100), 1e-6, rtol=1e-2)


@pytest.mark.parametrize("kind", ["adam", "sgd", "nesterov"])
def test_optimizer_steps_are_pytorchs(kind):
    """Fifty steps with weight decay and cosine annealing."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, target = (rng.normal(size=5).astype(np.float32) for _ in range(2))
    settings = train_settings(
        optimizer="adam" if kind == "adam" else "sgd",
        nesterov=kind == "nesterov",
        momentum=0.9,
        learning_rate=0.05,
        weight_decay=0.01,
    )
    theirs = torch.tensor(start, requires_grad=True)
    if kind == "adam":
        torch_optimizer = torch.optim.Adam([theirs], lr=0.05, weight_decay=0.01)
    else:
        torch_optimizer = torch.optim.SGD(
            [theirs], lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=kind == "nesterov"
        )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, 50, eta_min=1e-6)
    optimizer = build_optimizer(settings, 50)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for _ in range(50):
        loss = torch.sum((theirs - torch.tensor(target)) ** 4)
        torch_optimizer.zero_grad()
        loss.backward()
        torch_optimizer.step()
        schedule.step()
        updates, state = optimizer.update(4 * (ours - target) ** 3, state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_jacobian_weight():
    config = default.get_config()
    config.jacobian.update(
        weight=2.0, pretrain_weight=0.03, frequency=0.1, increment_every=10, stop_epoch=8
    )
    config.train.pretrain_steps = 20
    weight = jax.jit(jacobian_weight(config, steps_per_epoch=10))
    expected = {0: 0.03, 19: 0.03, 20: 2.0, 29: 2.0, 30: 2.1, 79: 2.5, 80: 0.0, 500: 0.0}
    for step, value in expected.items():
        np.testing.assert_allclose(weight(step), value, rtol=1e-6)


def test_polynomial_and_step_schedules_are_pytorchs():
    torch = pytest.importorskip("torch")

    def rates(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        schedule = make(optimizer)
        for _ in range(40):
            yield optimizer.param_groups[0]["lr"]
            optimizer.step()
            schedule.step()

    settings = {"learning_rate": 0.1, "epochs": 4.0}
    polynomial = train_settings(schedule="polynomial", end_learning_rate=0.0, **settings)
    theirs = rates(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 40, power=0.9))
    ours = learning_rate(polynomial, 40)
    np.testing.assert_allclose([ours(step) for step in range(40)], list(theirs), rtol=1e-5)
    step = train_settings(schedule="step", decay_epochs=(1.5, 3.0), decay_factor=0.2, **settings)
    theirs = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [15, 30], gamma=0.2))
    ours = learning_rate(step, 40)
    np.testing.assert_allclose([ours(step) for step in range(40)], list(theirs), rtol=1e-5)


def test_summary():
    def scalars(loss, skipped=0.0):
        return {"loss": np.float32(loss), "skipped": np.float32(skipped)}

    def sums(correct):
        return {"accuracy": np.float32(correct), "loss": np.float32(0), "count": np.float32(4)}

    reports = [
        Report(
            scalars(2.0),
            {
                "forward/rel_residual": np.array([0.1, 0.2, 0.3, 0.4]),
                "forward/status": np.array([0, 0, 0, 1]),
            },
            sums(1),
        ),
        Report(scalars(4.0), {}, sums(2)),
        Report(scalars(np.nan, skipped=1.0), {}, sums(4)),
    ]
    summary = summarize(reports, build_task(default.get_config()))
    assert summary["train/loss"] == 3.0
    assert summary["train/accuracy"] == 3 / 8
    assert summary["train/skipped_updates"] == 1
    np.testing.assert_allclose(summary["train/forward_rel_residual"], 0.25)
    np.testing.assert_allclose(summary["train/forward_rel_residual_max"], 0.4)
    assert summary["train/forward_unconverged"] == 0.25


def test_metrics_file_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15)) + '{"st')
    with MetricsWriter(tmp_path, after_step=10, tensorboard=False) as writer:
        writer.write({"step": 15, "new": float("nan")})
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert steps == [{"step": 5}, {"step": 10}, {"step": 15, "new": None}]


def test_figures_as_json_has_them():
    """A sweep holds the figures of each number of steps."""
    figures = {"miou": 0.5, "iou/bus": math.nan, "sweep": {1: {"iou/bus": math.inf, "nfe": 2}}}
    expected = {"miou": 0.5, "iou/bus": None, "sweep": {1: {"iou/bus": None, "nfe": 2}}}
    assert finite(figures) == expected


def test_line_of_an_evaluation():
    metrics = dict(loss=0.5, nfe=8.0, rel_residual=1e-3, rel_residual_p90=2e-3, unconverged=0.25)
    metrics |= dict(accuracy=0.5, miou=0.25, pixel_accuracy=0.75)
    metrics = {f"eval/{name}": value for name, value in metrics.items()}
    rest = "  loss 0.5000  NFE 8.0  residual 1.0e-03 (90 %: 2.0e-03, 25.0 % not converged)"
    assert describe_evaluation(metrics, "accuracy") == f"accuracy 50.00 %{rest}"
    pixels = "mIoU 25.00 %  pixel accuracy 75.00 %"
    assert describe_evaluation(metrics, "miou") == pixels + rest
