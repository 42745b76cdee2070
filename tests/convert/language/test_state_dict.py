"""State dicts of the sequence models, both ways, in every variant, and those that do not fit."""

import json

import numpy as np
import pytest

from mdeq_jax.convert import (
    WeightsFileError,
    convert,
    convert_state_dict,
    export_state_dict,
    inspect_file,
    load_torch_file,
)
from mdeq_jax.convert.language.names import INV_FREQ, transformer_table, trellisnet_table
from tests.helpers.language import transformer_config, trellisnet_config
from tests.helpers.networks import assert_same

TRANSFORMERS = (
    "post_norm_adaptive",
    "post_norm_plain",
    "pre_norm_adaptive",
    "post_norm_div1_local",
    "training_trace_initial",
)
TRELLISNETS = ("small", "small_kernel3_dilation2")
MAKE = {"deq_transformer": transformer_config, "trellisnet": trellisnet_config}
MODELS = [
    *(("deq_transformer", name) for name in TRANSFORMERS),
    *(("trellisnet", name) for name in TRELLISNETS),
]


def load(reference_dir, folder, name, **fields):
    """The config and the state dict of a small model."""
    path = reference_dir / folder / f"{name.removesuffix('_initial')}.json"
    settings = json.loads(path.read_text())
    section = "transformer" if folder == "deq_transformer" else "trellisnet"
    fields = {f"model.{section}.{field}": value for field, value in fields.items()}
    config = MAKE[folder](settings.get("model", settings), fields)
    return config, load_torch_file(reference_dir / folder / f"{name}.pkl")


def assert_same_weights(actual, expected):
    """Bit by bit, except for what is computed and for copies, which are rounded."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        if name == INV_FREQ or "func_copy" in name:
            np.testing.assert_allclose(actual[name], array, rtol=1e-6, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(actual[name], array, err_msg=name)
            assert actual[name].dtype == np.float32


@pytest.mark.parametrize(("folder", "name"), MODELS)
def test_there_and_back(folder, name, reference_dir):
    config, state_dict = load(reference_dir, folder, name)
    exported = export_state_dict(convert_state_dict(state_dict, config), config)
    assert_same_weights(exported, state_dict)


def test_tied_projections_are_stored_once_or_as_copies(reference_dir):
    folder, name = "deq_transformer", "training_trace_initial"
    once, state_dict = load(reference_dir, folder, name)
    copies, _ = load(reference_dir, folder, name, projection_updates="each_use")
    variables = convert_state_dict(state_dict, once)["params"]
    assert not {"projection1", "projection2"} & variables["softmax"].keys()
    copied = convert_state_dict(state_dict, copies)["params"]
    for i in (1, 2):
        layers = (copied[layer][f"projection{i}"] for layer in ("embedding", "softmax"))
        np.testing.assert_array_equal(*layers)
    assert_same_weights(export_state_dict({"params": copied}, copies), state_dict)
    difference = convert(state_dict, copies).parameters - convert(state_dict, once).parameters
    assert difference == 12 * 6 + 12 * 3


@pytest.mark.parametrize("updates", ["once", "each_use"])
@pytest.mark.parametrize("key", ["crit.out_layers.1.weight", "crit.out_projs.2.weight"])
def test_untied_weights_are_refused(key, updates, reference_dir):
    folder, name = "deq_transformer", "training_trace_initial"
    config, state_dict = load(reference_dir, folder, name, projection_updates=updates)
    state_dict[key] = state_dict[key] + 1
    with pytest.raises(WeightsFileError, match=f"{key} is not .*, to which it is tied"):
        convert_state_dict(state_dict, config)


def test_the_first_versions_transformer(reference_dir):
    """It holds the cell again as its solvers' attribute, and copies without weight norm."""
    config, state_dict = load(reference_dir, "deq_transformer", "post_norm_adaptive")
    expected = convert_state_dict(state_dict, config)
    own = {n.removeprefix("func."): a for n, a in state_dict.items() if n.startswith("func.")}
    plain = {n: a for n, a in own.items() if not n.endswith(("weight_g", "weight_v"))}
    for name in [n for n in own if n.endswith("weight_v")]:
        v, g = own[name], own[name.replace("weight_v", "weight_g")]
        norm = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
        plain[name.removesuffix("_v")] = v * g / norm
    first = dict(state_dict)
    for prefix in ("deq.func.", "deqback.func."):
        first |= {prefix + n: a for n, a in own.items()}
    for prefix in ("func_copy.", "deqback.func_copy."):
        first |= {prefix + n: a for n, a in plain.items()}
    first = {f"module.{name}": array for name, array in first.items()}
    conversion = convert(first, config)
    assert_same(
        export_state_dict(conversion.variables, config), export_state_dict(expected, config)
    )
    assert len(conversion.ignored) == 5 and "equal to it" in conversion.ignored[0]
    assert any("first version" in note for note in conversion.notes)
    assert any("begin with 'module.'" in note for note in conversion.notes)


def test_a_trellisnet_without_its_loss(reference_dir):
    """As the original saves it."""
    config, state_dict = load(reference_dir, "trellisnet", "small")
    saved = {n: a for n, a in state_dict.items() if not n.startswith("criterion.")}
    conversion = convert(saved, config)
    assert any("criterion.* is not in the file" in note for note in conversion.notes)
    assert not conversion.variables["params"]["softmax"]["cluster_table"].any()


def test_what_does_not_fit_is_listed(reference_dir):
    config, state_dict = load(reference_dir, "deq_transformer", "post_norm_plain")
    del state_dict["func.pos_ff.ff1_net.bias"]
    state_dict["inject_conv.bias"] = state_dict["inject_conv.bias"][:3]
    state_dict["stranger"] = np.zeros(2, np.float32)
    with pytest.raises(WeightsFileError) as error:
        convert_state_dict(state_dict, config)
    text = str(error.value)
    for part in ("missing", "func.pos_ff.ff1_net.bias", "stranger", "[3] in the file"):
        assert part in text


def test_frequencies_of_another_embedding_are_refused(reference_dir):
    config, state_dict = load(reference_dir, "deq_transformer", "post_norm_plain")
    state_dict[INV_FREQ] = state_dict[INV_FREQ] * 2
    with pytest.raises(WeightsFileError, match="inv_freq is not what the model computes"):
        convert_state_dict(state_dict, config)


@pytest.mark.parametrize(("folder", "name"), MODELS)
def test_inspect(folder, name, reference_dir):
    text = inspect_file(reference_dir / folder / f"{name}.pkl")
    kind = "a DEQ-Transformer" if folder == "deq_transformer" else "a DEQ-TrellisNet"
    assert f"recognised as: {kind} (vocab_size=" in text and "parameters: " in text
    config, state_dict = load(reference_dir, folder, name)
    parameters = convert(state_dict, config).parameters
    assert f"parameters: {parameters:,}" in text


@pytest.mark.slow
def test_a_released_transformer_there_and_back(reference_dir):
    folder = reference_dir / "deq_transformer"
    settings = json.loads((folder / "hyperparameters.json").read_text())["wt103_deq_transformer"]
    config = transformer_config(settings)
    rng = np.random.default_rng(0)
    shapes = {e.torch_name: e.shape for e in transformer_table(config.model.transformer)}
    state_dict = {n: rng.random(shape, dtype=np.float32) for n, shape in shapes.items()}
    for i in range(4):
        table = state_dict[f"word_emb.emb_layers.{i}.weight"]
        state_dict[f"crit.out_layers.{i}.weight"] = table
        if i:
            projection = state_dict[f"word_emb.emb_projs.{i}.weight"]
            state_dict[f"crit.out_projs.{i}.weight"] = projection
    exponents = np.arange(0, 700, 2) / 700
    state_dict[INV_FREQ] = (10000.0**-exponents).astype(np.float32)
    conversion = convert(state_dict, config)
    assert "as configs/wikitext103_transformer.py" in conversion.recognised
    assert conversion.parameters == 97_691_888
    assert_same_weights(export_state_dict(conversion.variables, config), state_dict)


@pytest.mark.slow
def test_a_released_trellisnet_there_and_back(reference_dir):
    folder = reference_dir / "trellisnet"
    settings = json.loads((folder / "hyperparameters.json").read_text())
    config = trellisnet_config(settings | {"splits": settings["split_softmax_cutoffs"]})
    rng = np.random.default_rng(0)
    shapes = {e.torch_name: e.shape for e in trellisnet_table(config.model.trellisnet)}
    state_dict = {n: rng.random(shape, dtype=np.float32) for n, shape in shapes.items()}
    state_dict["decoder.weight"] = state_dict["encoder.weight"]
    conversion = convert(state_dict, config)
    assert "as configs/wikitext103_trellisnet.py" in conversion.recognised
    assert conversion.parameters == 174_168_738
    exported = export_state_dict(conversion.variables, config)
    assert_same_weights({n: a for n, a in exported.items() if n in state_dict}, state_dict)
    listed = json.loads((folder / "full_size_shapes.json").read_text())["wt103_nhid1500"]
    saved = {n: list(a.shape) for n, a in exported.items() if not n.startswith("criterion.")}
    assert saved == listed["state_dict"]


@pytest.mark.parametrize(
    ("folder", "name", "field", "other"),
    [
        ("deq_transformer", "post_norm_adaptive", "d_inner", 44),
        ("trellisnet", "small", "nhid", 30),
    ],
)
def test_overrides_with_which_a_file_fits(folder, name, field, other, reference_dir):
    config, state_dict = load(reference_dir, folder, name)
    section = "transformer" if folder == "deq_transformer" else "trellisnet"
    right = config.model[section][field]
    config.model[section][field] = other
    with pytest.raises(WeightsFileError) as error:
        convert(state_dict, config)
    assert f"with --config.model.{section}.{field}={right}\n" in str(error.value)
