"""The released RepMLP files of both versions and both forms, there and back."""

import json

import jax
import numpy as np
import pytest

from configs import default
from mdeq_jax.convert import (
    WeightsFileError,
    convert,
    convert_state_dict,
    export_state_dict,
    inspect_file,
    write_torch_file,
)
from mdeq_jax.convert.families import describe, weight_names
from mdeq_jax.models import build_model, deploy
from tests.helpers.networks import assert_same, random_state_dict

SMALL_RESNET = dict(
    num_blocks=(1, 2, 2, 1), channels=(4, 16, 16, 32, 16), partition=(2, 2), groups=1
)
SMALL_NET = dict(channels=(4, 8), num_blocks=(1, 2), partitions=(4, 2), sharesets=(1, 4))
NETWORKS = {
    "light": ("repmlp_resnet", SMALL_RESNET),
    "bottleneck": ("repmlp_resnet", SMALL_RESNET | {"block": "bottleneck"}),
    "base": ("repmlp_resnet", SMALL_RESNET | {"block": "base"}),
    "repmlpnet": ("repmlpnet", SMALL_NET),
}


def make_config(name, **model):
    family, fields = NETWORKS[name]
    config = default.get_config(family)
    config.model.update(num_classes=10, **{**fields, **model})
    config.data.image_size = (32, 32) if family == "repmlp_resnet" else (16, 16)
    return config


def random_weights(config, seed=0):
    table = weight_names(config).table(config)
    return random_state_dict({entry.torch_name: entry.shape for entry in table}, seed)


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name, deployed):
    config = make_config(name, deployed=deployed)
    state_dict = random_weights(config)
    variables = convert_state_dict(state_dict, config)
    images = np.zeros((1, *config.data.image_size, 3), np.float32)
    expected = jax.eval_shape(build_model(config).init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda a: a.shape, expected)
    assert_same(export_state_dict(variables, config), state_dict)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes(prefix):
    config = make_config("repmlpnet")
    state_dict = random_weights(config)
    prefixed = {prefix + name: array for name, array in state_dict.items()}
    conversion = convert(prefixed, config)
    assert conversion.notes == [f"{len(prefixed)} names begin with {prefix!r}"]
    assert_same(export_state_dict(conversion.variables, config), state_dict)


@pytest.mark.parametrize("name", ["light", "repmlpnet"])
def test_a_file_of_the_other_form_names_the_override(name):
    trained = make_config(name)
    deployed = make_config(name, deployed=True)
    with pytest.raises(WeightsFileError, match=r"fc3_bn.*\n(.*\n)*.*--config.model.deployed=True"):
        convert_state_dict(random_weights(deployed), trained)


def test_missing_and_unexpected_keys_are_errors():
    """The original's loader of RepMLPNet ignores both."""
    config = make_config("repmlpnet")
    state_dict = random_weights(config)
    del state_dict["head.bias"]
    state_dict["extra"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsFileError, match=r"(?s)2 entries differ.*head\.bias.*extra"):
        convert_state_dict(state_dict, config)


def test_exporting_the_merged_form():
    """The merged network has the names and shapes of the original's deployed file."""
    config = make_config("bottleneck")
    variables = convert_state_dict(random_weights(config), config)
    merged, deployed = deploy(variables, config)
    exported = export_state_dict(merged, deployed)
    table = weight_names(deployed).table(deployed)
    assert list(exported) == [entry.torch_name for entry in table]
    with pytest.raises(WeightsFileError, match=r"missing batch_stats"):
        export_state_dict(merged, config)


def released(reference_dir):
    """Config -> form -> state dict without memory."""
    texts = (reference_dir / "repmlp" / "state_dicts.json").read_text()
    networks = {f"repmlp_{k}": v for k, v in json.loads(texts).items() if k.startswith("res50")}
    texts = (reference_dir / "repmlpnet" / "variants.json").read_text()
    networks |= {k.lower().replace("-", "_"): v for k, v in json.loads(texts).items()}
    zero = np.float32(0)
    return {
        (config, form): {name: np.broadcast_to(zero, shape) for name, shape in forms[form].items()}
        for config, forms in networks.items()
        for form in ("train", "deploy")
    }


def test_recognises_the_released_files(reference_dir):
    for (config, form), state_dict in released(reference_dir).items():
        found = describe(state_dict)[1]
        override = "" if form == "train" else " --config.model.deployed=True"
        assert found.text == f"configs/{config}.py{override}"


def test_inspects_a_file(tmp_path):
    config = make_config("light")
    write_torch_file(tmp_path / "weights.pth", random_weights(config))
    text = inspect_file(tmp_path / "weights.pth")
    assert "a network that no config here describes (name=repmlp_resnet, block=light" in text
    assert "parameters: " in text
