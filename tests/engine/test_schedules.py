"""Learning rates, optimisers and the Jacobian weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mdeq_jax.engine.schedules import jacobian_weight, learning_rate
from mdeq_jax.engine.state import build_optimizer


def train_settings(**fields):
    settings = default.get_config().train
    settings.update(fields)
    return settings


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
    step = train_settings(
        schedule="step", decay_epochs=(1.5, 1.51, 3.0), decay_factor=0.2, **settings
    )
    theirs = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [15, 15, 30], gamma=0.2))
    ours = learning_rate(step, 40)
    np.testing.assert_allclose([ours(step) for step in range(40)], list(theirs), rtol=1e-5)


def test_cosine_that_counts_from_the_start():
    """As timm's: after the warm-up the rate is already below its peak."""
    fields = dict(learning_rate=1e-3, end_learning_rate=0.0, warmup_learning_rate=5e-7)
    rate = learning_rate(train_settings(**fields, warmup_steps=100, schedule_from_start=True), 1000)
    np.testing.assert_allclose(rate(0), 5e-7, rtol=1e-5)
    np.testing.assert_allclose(rate(50), (5e-7 + 1e-3) / 2, rtol=1e-5)
    for step in (100, 500, 900):
        expected = 1e-3 * (1 + np.cos(np.pi * step / 1000)) / 2
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 0.976e-3, rtol=1e-3)


@pytest.mark.parametrize("from_start", [True, False])
def test_first_step_at_full_rate(from_start):
    fields = dict(learning_rate=1e-3, warmup_steps=10, schedule_from_start=from_start)
    plain = learning_rate(train_settings(**fields), 100)
    rate = learning_rate(train_settings(**fields, first_step_at_full_rate=True), 100)
    np.testing.assert_allclose(rate(0), 1e-3)
    np.testing.assert_allclose([rate(t) for t in range(1, 99)], [plain(t) for t in range(1, 99)])
    np.testing.assert_allclose(rate(1), 1e-4, rtol=1e-6)


@pytest.mark.parametrize("field", ["schedule_from_start", "first_step_at_full_rate"])
def test_warm_up_settings_without_a_warm_up(field):
    with pytest.raises(ValueError, match=rf"{field} has no effect with train\.warmup_steps=0"):
        learning_rate(train_settings(**{field: True}), 100)


def test_clipping_with_pytorchs_eps():
    torch = pytest.importorskip("torch")
    gradient = np.array([3e-7, 4e-7], np.float32)  # so small that eps shows
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([weight], 1e-7)
    settings = train_settings(
        optimizer="sgd", momentum=0.0, learning_rate=1.0, schedule="constant", grad_clip=1e-7
    )
    settings.grad_clip_eps = 1e-6
    optimizer = build_optimizer(settings, 100)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.asarray(gradient)}, optimizer.init(params), params)
    np.testing.assert_allclose(-updates["w"], weight.grad, rtol=1e-5)


def test_adamw_is_pytorchs_and_spares_biases_and_norms():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "scale": rng.normal(size=3).astype(np.float32),
        "bias": rng.normal(size=(2, 2)).astype(np.float32),
    }
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    rest = [theirs["scale"], theirs["bias"]]
    optimizer = torch.optim.AdamW(
        [{"params": [theirs["kernel"]]}, {"params": rest, "weight_decay": 0.0}],
        lr=0.01,
        weight_decay=0.1,
    )
    settings = train_settings(
        optimizer="adamw", weight_decay=0.1, learning_rate=0.01, schedule="constant"
    )
    ours = build_optimizer(settings, 100)
    state = ours.init(params)
    for _ in range(20):
        gradients = {
            name: rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()
        }
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[name])
        optimizer.step()
        updates, state = ours.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_muon_keeps_singular_vectors_and_evens_out_singular_values():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 2, 8), "v": (6, 4), "table": (5, 4), "bias": (4,)}
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    gradients = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    settings = train_settings(optimizer="muon", learning_rate=0.01, schedule="constant")
    optimizer = build_optimizer(settings, 100)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name in ("kernel", "v"):
        matrix = gradients[name].reshape(-1, shapes[name][-1])
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        rotated = left.T @ np.asarray(updates[name]).reshape(matrix.shape) @ right.T
        scale = -0.01 * 0.2 * np.sqrt(max(matrix.shape))
        values = np.diag(rotated) / scale
        assert np.all((values > 0.6) & (values < 1.3)), values  # the range of Newton-Schulz
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=2e-5 * abs(scale))
    nadam = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # its first step over the rate
    for name in ("table", "bias"):
        expected = -0.01 * nadam * np.sign(gradients[name])
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4)


def test_muon_decays_kernels_only():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "table": jnp.ones((3, 2))}
    settings = train_settings(
        optimizer="muon", learning_rate=0.01, weight_decay=0.1, schedule="constant"
    )
    optimizer = build_optimizer(settings, 100)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.001, rtol=1e-6)
    assert not np.any(updates["bias"]) and not np.any(updates["table"])
