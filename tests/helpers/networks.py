"""Configs and state dicts that the converter's tests share."""

import importlib
import json

import numpy as np
import pytest

from configs import default
from mdeq_jax.convert import WeightsFileError, convert_state_dict

# Experiment of the original -> our config.
EXPERIMENTS = {
    "cifar/cls_mdeq_TINY": "cifar10_tiny",
    "cifar/cls_mdeq_LARGE": "cifar10_large",
    "cifar/cls_mdeq_LARGE_reg": "cifar10_large_reg",
    "imagenet/cls_mdeq_SMALL": "imagenet_small",
    "imagenet/cls_mdeq_SMALL_reg": "imagenet_small_reg",
    "imagenet/cls_mdeq_LARGE": "imagenet_large",
    "imagenet/cls_mdeq_LARGE_reg": "imagenet_large_reg",
    "imagenet/cls_mdeq_XL": "imagenet_xl",
    "cityscapes/seg_mdeq_SMALL": "cityscapes_small",
    "cityscapes/seg_mdeq_LARGE": "cityscapes_large",
    "cityscapes/seg_mdeq_XL": "cityscapes_xl",
}
SMALL_MODELS = ("cls_two_scales", "cls_four_scales", "seg_four_scales")


def load_config(config_name, /, **model):
    """A config of configs/, with fields of its model changed."""
    config = importlib.import_module(f"configs.{config_name}").get_config()
    config.model.update(model)
    return config


def small_config(reference_dir, name):
    """The config of one of the three small reference models."""
    settings = json.loads((reference_dir / "small_models.json").read_text())[name]
    config = default.get_config()
    for field, value in settings.items():
        if field in config.model:
            config.model[field] = tuple(value) if isinstance(value, list) else value
    config.model.name = "mdeq_segmenter" if settings["task"] == "seg" else "mdeq_classifier"
    config.data.image_size = tuple(settings["input"][2:])
    return config.lock()


def random_state_dict(shapes, seed=0):
    """Random float32 arrays, and 0 for PyTorch's counters."""
    rng = np.random.default_rng(seed)
    return {
        name: np.zeros((), np.int64)
        if name.endswith("num_batches_tracked")
        else rng.random(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }


def released_shapes(reference_dir):
    """Experiment -> {name: shape}, for all that `state_dicts.json` lists."""
    text = (reference_dir / "state_dicts.json").read_text()
    return {name: entry["state_dict"] for name, entry in json.loads(text).items()}


def assert_same(actual, expected):
    """The same names in the same order, the same arrays, bit by bit."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def refusal(state_dict, config):
    """What the converter says in refusing a state dict."""
    with pytest.raises(WeightsFileError) as caught:
        convert_state_dict(state_dict, config)
    return str(caught.value)
