"""State dicts to variables and back: full size, every variant of names, and what does not fit."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from mdeq_jax.convert import (
    WeightsFileError,
    convert,
    convert_state_dict,
    export_state_dict,
    load_torch_file,
    recognise,
)
from mdeq_jax.convert.mdeq.architectures import architecture_of, infer_architecture
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.convert.mdeq.variants import standard_names
from tests.helpers import networks
from tests.helpers.networks import EXPERIMENTS, assert_same, load_config, random_state_dict

TINY, CITYSCAPES = "cifar/cls_mdeq_TINY", "cityscapes/seg_mdeq_SMALL"
COUNTERS = "*.num_batches_tracked"


@pytest.fixture(scope="module")
def tiny(shapes):
    """A random state dict of the TINY network, and its config."""
    return random_state_dict(shapes[TINY]), load_config("cifar10_tiny")


@pytest.fixture(scope="module")
def segmenter(shapes):
    return random_state_dict(shapes[CITYSCAPES]), load_config("cityscapes_small")


def refusal(state_dict, config):
    with pytest.raises(WeightsFileError) as caught:
        convert_state_dict(state_dict, config)
    return str(caught.value)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_full_size_there_and_back(experiment, shapes):
    config = load_config(EXPERIMENTS[experiment])
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    assert f"configs/{config.name}.py (the original's {experiment})" in conversion.recognised
    assert "--config" not in conversion.recognised and not conversion.notes
    assert [line.split(":")[0] for line in conversion.ignored] == [COUNTERS]
    assert_same(export_state_dict(conversion.variables, config), state_dict)


XL_SCRIPT = """
import json, pathlib, sys, time
from mdeq_jax.convert import convert_state_dict, export_state_dict, load_torch_file
from tests.helpers import networks, torch_files

shapes = json.loads(pathlib.Path(sys.argv[1]).read_text())
state_dict, path = networks.random_state_dict(shapes), pathlib.Path(sys.argv[2])
kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
pickled = torch_files.dumps({
    name: torch_files.tensor(array.shape, key=str(i), kind=kinds[array.dtype.name])
    for i, (name, array) in enumerate(state_dict.items())
})
torch_files.write_zip(path, pickled, {str(i): a.data for i, a in enumerate(state_dict.values())})

config = networks.load_config("imagenet_xl")
start = time.perf_counter()
exported = export_state_dict(convert_state_dict(load_torch_file(path), config), config)
seconds = time.perf_counter() - start
networks.assert_same(exported, state_dict)
# Not getrusage: its peak is that of the process that started this one, if that was larger.
status = pathlib.Path("/proc/self/status").read_text()
kilobytes = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "gigabytes": kilobytes / 1e6}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_xl_from_its_file_in_time_and_memory(shapes, tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes["imagenet/cls_mdeq_XL"]))
    weights = tmp_path / "xl.pkl"
    command = [sys.executable, "-c", XL_SCRIPT, str(path), str(weights)]
    result = subprocess.run(command, capture_output=True, text=True)
    weights.unlink(missing_ok=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    print(figures)
    assert figures["seconds"] < 30 and figures["gigabytes"] < 3, figures


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "module.model.", "_orig_mod."])
def test_prefixes(prefix, tiny):
    state_dict, config = tiny
    conversion = convert({prefix + name: w for name, w in state_dict.items()}, config)
    assert conversion.notes == [f"94 names begin with {prefix!r}"]
    assert_same(export_state_dict(conversion.variables, config), state_dict)


def test_prefixed_network_with_the_loss_beside_it(segmenter):
    state_dict, config = segmenter
    wrapped = {f"model.{name}": w for name, w in state_dict.items()}
    for name in ("loss.criterion.weight", "criterion.weight"):
        conversion = convert({**wrapped, name: np.ones(19, np.float32)}, config)
        assert f"{name}: the loss's class weights" in conversion.ignored
        assert_same(export_state_dict(conversion.variables, config), state_dict)


def test_two_networks_in_one_state_dict_are_refused(tiny):
    state_dict, config = tiny
    both = {**state_dict, "module.classifier.bias": np.zeros(10, np.float32)}
    assert "classifier.bias and module.classifier.bias are the same" in refusal(both, config)


FIRST_VERSION = {
    "first_version/cifar/cls_mdeq_TINY": "cifar10_tiny",
    "first_version/imagenet/cls_mdeq_SMALL": "imagenet_small",
    "first_version/cityscapes/seg_mdeq_SMALL": "cityscapes_small",
}


@pytest.mark.parametrize("experiment", FIRST_VERSION)
def test_first_version_holds_the_cell_four_times(experiment, shapes):
    config = load_config(FIRST_VERSION[experiment], post_gn_affine=True)
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    copies = ("fullstage_copy.", "deq.func.", "deq.func_copy.")
    own = {name: w for name, w in state_dict.items() if not name.startswith(copies)}
    assert_same(export_state_dict(conversion.variables, config), own)
    assert {line.split("*")[0] for line in conversion.ignored} == {*copies, ""}
    assert all("off by up to" in line for line in conversion.ignored if "copy of" in line)
    assert "written by the first version, with copies of the cell" in conversion.notes
    override = "--config.model.post_gn_affine=True"
    assert (override in conversion.recognised) == (config.name == "cifar10_tiny")


def test_first_version_copies_that_are_true(shapes):
    state_dict = random_state_dict(shapes["first_version/cifar/cls_mdeq_TINY"])
    for name in state_dict:
        for prefix in ("deq.func.", "fullstage_copy.", "deq.func_copy."):
            cell_name = "fullstage." + name.removeprefix(prefix)
            if name.startswith(prefix) and cell_name in state_dict:
                state_dict[name] = state_dict[cell_name]
            elif name.startswith(prefix):
                g, v = state_dict[f"{cell_name}_g"], state_dict[f"{cell_name}_v"]
                norm = np.sqrt((v.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
                state_dict[name] = (g * v / norm).astype(np.float32)
    config = load_config("cifar10_tiny", post_gn_affine=True)
    lines = [line for line in convert(state_dict, config).ignored if "copy of the cell" in line]
    assert len(lines) == 3 and all(line.endswith("equal to it") for line in lines)


def test_a_copy_of_nothing_is_unexpected(tiny):
    state_dict, config = tiny
    for name, shape in (("deq.func.extra", (3,)), ("fullstage_copy.branches.0.blocks.0.gn1", (2,))):
        assert name in refusal({**state_dict, name: np.zeros(shape, np.float32)}, config)


TORCHDEQ = {"torchdeq/cifar_large": "cifar10_large_phantom", "torchdeq/cifar_small": "cifar10_tiny"}


@pytest.mark.parametrize("experiment", TORCHDEQ)
def test_torchdeq_there_and_back(experiment, shapes):
    config = load_config(TORCHDEQ[experiment], post_gn_affine=True, fuse_weight_norm=True)
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    assert "--config.model.fuse_weight_norm=True" in conversion.recognised
    assert f"configs/{config.name}.py" in conversion.recognised
    assert_same(export_state_dict(conversion.variables, config), state_dict)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(kind, tiny):
    state_dict, config = tiny
    narrow = {n: w.astype(kind) if w.dtype.kind == "f" else w for n, w in state_dict.items()}
    exported = export_state_dict(convert_state_dict(narrow, config), config)
    assert_same(exported, {n: w.astype(state_dict[n].dtype) for n, w in narrow.items()})


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_weights_that_are_not_finite_are_named(value, tiny):
    state_dict, config = tiny
    bad = {name: w.astype(np.float64) for name, w in state_dict.items()}
    bad["classifier.bias"][:2] = value
    message = refusal(bad, config)
    assert "classifier.bias: 2 of 10 numbers" in message and "--allow_nonfinite" in message
    conversion = convert(bad, config, allow_nonfinite=True)
    assert conversion.notes == ["not finite: classifier.bias: 2 of 10 numbers"]


def test_counters_may_be_absent(tiny):
    state_dict, config = tiny
    old = {name: w for name, w in state_dict.items() if not name.endswith("num_batches_tracked")}
    conversion = convert(old, config)
    assert not conversion.ignored
    assert_same(export_state_dict(conversion.variables, config), state_dict)


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


def test_unknown_sizes_and_no_mdeq_at_all(reference_dir, tiny):
    for name in networks.SMALL_MODELS:
        named = standard_names(load_torch_file(reference_dir / f"{name}.pkl"))
        found = recognise(named.tensors)
        assert found.misfit.count == 0
        assert "no config here describes (name=mdeq_" in found.text
    message = refusal({"layer.weight": np.zeros((2, 2), np.float32)}, tiny[1])
    assert message.endswith("Recognised as: a network of no family here.")


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


def test_inferred_from_every_kind_of_network():
    """Odd networks that nobody released: one scale, many blocks, large kernels, long stems."""
    sizes = dict(head_channels=(4,), final_channels=12)
    for fields in (
        dict(channels=(8,), num_blocks=(2,), big_kernels=(1,), downsample_times=1, **sizes),
        dict(num_blocks=(1, 3), big_kernels=(2, 1), weight_norm=False, block_gn_affine=False),
        dict(downsample_times=4, fuse_gn_affine=False, post_gn_affine=True, dropout=0.5),
        dict(name="mdeq_segmenter", final_conv_kernel=3, downsample_times=2, num_classes=3),
    ):
        model = load_config("cifar10_tiny", **fields).model
        shapes = {entry.torch_name: entry.shape for entry in name_table(model)}
        assert infer_architecture(shapes) == architecture_of(model)


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


def test_more_scales_than_an_image_has_are_not_tried():
    kernel = np.zeros((2, 2, 3, 3), np.float32)
    many = {f"fullstage.branches.{i}.blocks.0.conv1.weight": kernel for i in range(5000)}
    many["classifier.weight"] = np.zeros((2, 2), np.float32)
    many["incre_modules.0.0.conv1.weight"] = kernel
    assert recognise(many).architecture is None


def test_a_family_without_a_table_of_names():
    config = load_config("default", name="perceptron")
    for call in (convert_state_dict, export_state_dict):
        with pytest.raises(WeightsFileError, match=r"model\.name='perceptron', only for \['mdeq"):
            call({}, config)
