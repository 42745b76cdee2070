"""State dicts that do not fit their config, and what the error says of them."""

import numpy as np
import pytest

from mdeq_jax.convert import WeightsFileError, convert, convert_state_dict, export_state_dict
from tests.helpers.networks import load_config, random_state_dict, refusal

TINY = "cifar/cls_mdeq_TINY"


def test_every_misfit_is_listed(tiny):
    state_dict, config = tiny
    broken = dict(state_dict)
    del broken["downsample.0.weight"], broken["classifier.bias"]
    broken["stray.weight"] = np.zeros(3, np.float32)
    broken["other.num_batches_tracked"] = np.zeros((), np.int64)
    broken["final_layer.1.bias"] = np.zeros(7, np.float32)
    broken["fullstage.branches.0.blocks.0.gn1.bias"] = np.zeros(120, np.int64)
    message = refusal(broken, config)
    assert "6 entries differ" in message
    assert "2 missing" in message and "2 unexpected" in message and "2 mis-shaped" in message
    for line in (
        "  downsample.0.weight\n",
        "  classifier.bias\n",
        "  stray.weight\n",
        "  other.num_batches_tracked\n",
        "  final_layer.1.bias: [7] in the file, [200] in the network\n",
        "gn1.bias: int64 in the file, a weight is a float\n",
    ):
        assert line in message
    assert "6 tensors do not fit; nearest is configs/cifar10_tiny.py" in message


def test_another_architecture_is_named_with_every_key(tiny, shapes):
    state_dict, _ = tiny
    message = refusal(state_dict, load_config("imagenet_small"))
    assert message.endswith(f"configs/cifar10_tiny.py (the original's {TINY}).")
    needed, held = shapes["imagenet/cls_mdeq_SMALL"], shapes[TINY]
    for name in needed.keys() ^ held.keys():
        assert f"  {name}\n" in message or name.endswith("num_batches_tracked")
    for name in needed.keys() & held.keys():
        assert (f"  {name}: {held[name]} in the file, {needed[name]}" in message) == (
            needed[name] != held[name]
        )


@pytest.mark.parametrize(
    ("experiment", "config", "overrides"),
    [
        ("first_version/cifar/cls_mdeq_TINY", "cifar10_tiny", {"post_gn_affine": True}),
        ("cifar/cls_mdeq_LARGE", "cifar10_large_phantom", {"post_gn_affine": False}),
        ("torchdeq/cifar_large", "cifar10_large_phantom", {"fuse_weight_norm": True}),
        (
            "torchdeq/cifar_large",
            "cifar10_large_reg",
            {"fuse_weight_norm": True, "post_gn_affine": True},
        ),
    ],
)
def test_flags_that_would_make_it_fit(experiment, config, overrides, shapes):
    state_dict = random_state_dict(shapes[experiment])
    message = refusal(state_dict, load_config(config))
    flags = " ".join(f"--config.model.{name}={value}" for name, value in overrides.items())
    assert f"The file fits this config with {flags}\n" in message
    convert_state_dict(state_dict, load_config(config, **overrides))


def test_other_number_of_classes(tiny):
    state_dict, config = tiny
    fewer = state_dict | {
        f"classifier.{part}": state_dict[f"classifier.{part}"][:7] for part in ("weight", "bias")
    }
    assert "fits this config with --config.model.num_classes=7" in refusal(fewer, config)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_weights_that_are_not_finite_are_named(value, tiny):
    state_dict, config = tiny
    bad = {name: w.astype(np.float64) for name, w in state_dict.items()}
    bad["classifier.bias"][:2] = value
    message = refusal(bad, config)
    assert "classifier.bias: 2 of 10 numbers" in message and "--allow_nonfinite" in message
    conversion = convert(bad, config, allow_nonfinite=True)
    assert conversion.notes == ["not finite: classifier.bias: 2 of 10 numbers"]
    with pytest.raises(WeightsFileError, match=r"(?s)classifier.bias: 2 of 10 .*export this one"):
        export_state_dict(conversion.variables, config)
    exported = export_state_dict(conversion.variables, config, allow_nonfinite=True)
    assert not np.isfinite(exported["classifier.bias"][:2]).any()


def test_names_that_would_move_the_terminal_are_escaped(tiny):
    state_dict, config = tiny
    message = refusal({**state_dict, "\x1b[2Jcleared": np.zeros(1, np.float32)}, config)
    assert "\\x1b[2Jcleared" in message and "\x1b" not in message


def test_export_refuses_other_variables(tiny):
    state_dict, config = tiny
    variables = convert_state_dict(state_dict, config)
    del variables["params"]["head"]["classifier"]["bias"]
    variables["params"]["head"]["classifier"]["kernel"] = np.zeros((200, 7), np.float32)
    variables["batch_stats"]["extra"] = np.zeros(1, np.float32)
    with pytest.raises(WeightsFileError) as caught:
        export_state_dict(variables, config)
    for line in (
        "missing params/head/classifier/bias",
        "unexpected batch_stats/extra",
        "params/head/classifier/kernel is (200, 7), but must be (200, 10)",
    ):
        assert line in str(caught.value)


def test_mutated_state_dicts_convert_or_are_refused(tiny):
    """Whatever is dropped, renamed or reshaped: the converter's own error, or the same network."""
    state_dict, config = tiny
    rng = np.random.default_rng(0)
    names = list(state_dict)
    refused = 0
    for _ in range(300):
        mutated = dict(state_dict)
        for name in rng.choice(names, rng.integers(1, 4), replace=False):
            tensor = mutated.pop(name)
            shape = tuple(rng.integers(0, 4, rng.integers(0, 5)))
            match rng.integers(4):
                case 1:
                    mutated[name.replace("0", "1")] = tensor
                case 2:
                    mutated[name] = np.zeros(shape, np.float32)
                case 3:
                    mutated[name] = tensor.astype(rng.choice(["int32", "bool", "complex64"]))
        try:
            convert_state_dict(mutated, config)
        except WeightsFileError:
            refused += 1
    assert 200 < refused < 300


def test_a_family_without_a_table_of_names():
    config = load_config("default", name="perceptron")
    for call in (convert_state_dict, export_state_dict):
        with pytest.raises(WeightsFileError, match=r"model\.name='perceptron', only for \['deq"):
            call({}, config)
