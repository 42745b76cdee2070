"""mixup and CutMix: shares, boxes, and the loss of two labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mdeq_jax.models import ModelOutput
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.classification.mixing import mix

IMAGES = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 8, 6, 3))


def test_mixup_is_the_weighted_sum_with_the_reversed_batch():
    mixed, share = mix(IMAGES, jax.random.key(0), mixup=0.4, cutmix=0.0)
    assert share.shape == (4,) and 0 < share[0] < 1 and jnp.ptp(share) == 0
    expected = share[0] * IMAGES + (1 - share[0]) * IMAGES[::-1]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_cutmix_cuts_one_box_and_its_share_is_what_is_left():
    shares = []
    for seed in range(40):
        mixed, share = mix(IMAGES, jax.random.key(seed), mixup=0.0, cutmix=1.0)
        inside = np.asarray(mixed[0, :, :, 0] == IMAGES[-1, 0, 0, 0])
        assert (np.asarray(mixed[0, :, :, 0])[~inside] == 0).all()
        np.testing.assert_allclose(share[0], 1 - inside.mean(), atol=1e-6)
        rows, columns = inside.any(1), inside.any(0)
        assert (inside == rows[:, None] & columns[None, :]).all()
        for line in (rows, columns):
            assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() <= 2
        shares.append(float(share[0]))
    assert np.ptp(shares) > 0.4


def test_both_take_turns():
    kinds = set()
    for seed in range(20):
        mixed, _ = mix(IMAGES, jax.random.key(seed), mixup=0.4, cutmix=1.0)
        values = np.unique(np.asarray(mixed[0]))
        kinds.add("cutmix" if set(values) <= {0.0, 3.0} else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_the_loss_is_that_of_the_mixed_targets():
    config = default.get_config()
    config.train.update(mixup=0.4, label_smoothing=0.1)
    task = build_task(config)
    label = jnp.array([1, 2, 3, 4])
    batch = task.augment({"image": IMAGES, "label": label}, jax.random.key(0))
    logits = jax.random.normal(jax.random.key(1), (4, 10))
    share = batch["share"][:, None]
    target = share * jax.nn.one_hot(label, 10) + (1 - share) * jax.nn.one_hot(label[::-1], 10)
    target = 0.9 * target + 0.1 / 10
    expected = -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), axis=1))
    np.testing.assert_allclose(task.loss(ModelOutput(logits), batch), expected, rtol=1e-5)


def test_it_is_off_by_default_and_refuses_negative_numbers():
    config = default.get_config()
    assert not build_task(config).augments
    config.train.cutmix = -1.0
    with pytest.raises(ValueError, match=r"train\.cutmix must not be negative; got -1"):
        build_task(config)
