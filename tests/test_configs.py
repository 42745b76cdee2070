"""Every config builds, and the released ones are the original's experiments, field by field."""

import ast
import importlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax.convert import KNOWN_ARCHITECTURES
from mdeq_jax.convert.entries import count_parameters
from mdeq_jax.convert.mdeq.architectures import architecture_of
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.models import build_model

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parent.parent / "configs").glob("*.py")
    if path.stem not in ("__init__", "default")
)
OTHERS = ("repmlp", "wikitext103", "enwik8", "pydoc")  # have tests of their own
MDEQ_CONFIGS = [name for name in CONFIGS if not name.startswith(OTHERS)]
# As published; the phantom-gradient network has affine norms where cifar10_large has none.
PARAMETERS = {
    "cifar10_tiny": 158_890,
    "cifar10_large": 11_097_438,
    "cifar10_large_reg": 11_097_438,
    "cifar10_large_phantom": 11_097_438 + 2 * (32 + 64 + 128 + 256),
    "imagenet_small": 16_808_936,
    "imagenet_small_reg": 18_613_496,
    "imagenet_small_phantom": 16_808_936,
    "imagenet_large": 67_063_624,
    "imagenet_large_reg": 67_061_224,
    "imagenet_xl": 90_463_280,
    "cityscapes_small": 8_968_467,
    "cityscapes_large": 55_955_859,
    "cityscapes_xl": 79_551_755,
}


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def test_every_released_experiment_is_here():
    assert set(CONFIGS) >= set(PARAMETERS) == set(KNOWN_ARCHITECTURES)


@pytest.mark.parametrize("name", MDEQ_CONFIGS)
def test_builds_with_the_parameters_of_the_name_table(name):
    """The model's own shapes are those that the converter's table declares."""
    config = load(name)
    assert config.name == name and config.is_locked
    model = build_model(config)
    side = 2 ** (config.model.downsample_times + len(config.model.channels) - 1)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    table = name_table(config.model)
    assert shapes == {
        entry.path: entry.rule.to_flax(jnp.empty(entry.shape, bool)).shape
        for entry in table
        if entry.path is not None
    }
    if name in PARAMETERS:
        assert count_parameters(table) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_opens_with_paper_result_cost_and_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    for part in ("Paper: ", "Published: ", f"Cost: {PARAMETERS[name]:,} parameters", ".py"):
        assert part in text
    assert f"    python train.py --config=configs/{name}.py" in text


@pytest.mark.parametrize("name", PARAMETERS)
def test_known_architecture_is_the_configs(name):
    assert KNOWN_ARCHITECTURES[name][1] == architecture_of(load(name).model)


def expected_settings(experiments, name):
    """The experiment of a config; a variant is listed as its differences from another."""
    experiment = experiments[KNOWN_ARCHITECTURES[name][0]]
    if "as" not in experiment:
        return experiment
    base = experiments[experiment["as"].split()[0]]
    merged = {
        part: {**base.get(part, {}), **experiment.get(part, {})}
        for part in (*base, "gradient")
        if isinstance(base.get(part, {}), dict)
    }
    if "all group norms affine" in experiment["as"]:
        merged["model"]["post_gn_affine"] = True
    return merged


# Fields of the original that are ours under another name, or follow from ours; and that have no
# counterpart: how a batch is spread, and hard example mining, which no released run switches on.
RENAMED = {
    "train": {"global_batch": "batch_size"},
    "gradient": {"damping": "tau"},
}
LEFT_OUT = {
    "train": {"batch_per_device", "devices"},
    "data": {"flip", "multi_scale", "ignore_label", "ohem", "ohem_threshold", "ohem_keep"},
}


def inert_settings(name):
    """The released settings without effect, which a config holds as comments."""
    text = (Path(__file__).parent.parent / "configs" / f"{name}.py").read_text()
    found = re.findall(r"^    # config\.([\w.]+) = (\S+)", text, re.MULTILINE)
    return {field: ast.literal_eval(value) for field, value in found}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_field_is_the_originals(name, reference_dir):
    experiments = json.loads((reference_dir / "experiments.json").read_text())
    config, expected = (
        load(name).copy_and_resolve_references(),
        expected_settings(experiments, name),
    )
    config.update_from_flattened_dict(inert_settings(name))
    ours = config.to_dict()
    ours["solver"] = {
        "random_forward_delta": config.train.random_forward_delta,
        **{part: config.solver[part].name for part in ("forward", "backward")},
        **{f"{part}_max_steps": config.solver[part].max_steps for part in ("forward", "backward")},
    }
    for field in ("stop_mode", "tol"):
        assert config.solver.forward[field] == config.solver.backward[field]
        ours["solver"][field] = config.solver.forward[field]
    ours["train"]["warmup_epochs"] = config.train.warmup_steps
    segmentation = config.model.name == "mdeq_segmenter"
    if segmentation:
        ours["data"]["crop_width_height"] = config.data.image_size[::-1]
        ours["data"]["test_width_height"] = config.data.eval_image_size[::-1]
        assert config.data.augment == expected["data"]["flip"] == expected["data"]["multi_scale"]
        assert not expected["data"]["ohem"]
    assert config.train.sync_batch_norm == segmentation

    compared = 0
    for part in ("model", "solver", "jacobian", "train", "data", "gradient"):
        for field, value in expected.get(part, {}).items():
            if field in LEFT_OUT.get(part, ()):
                continue
            value = tuple(value) if isinstance(value, list) else value
            if field == "pretrain_layers" and not expected["train"]["pretrain_steps"]:
                continue
            assert ours[part][RENAMED.get(part, {}).get(field, field)] == value, (part, field)
            compared += 1
    assert compared >= 35


@pytest.mark.parametrize("name", [n for n in PARAMETERS if "phantom" not in n])
def test_pinned_parameters_are_the_originals(name, reference_dir):
    experiments = json.loads((reference_dir / "experiments.json").read_text())
    assert experiments[KNOWN_ARCHITECTURES[name][0]]["parameters"] == PARAMETERS[name]
