"""The command line of `convert_torch_weights.py`, in this process."""

import json
import sys

import jax
import numpy as np
import pytest
from absl import flags

from mdeq_jax import convert_torch_weights
from mdeq_jax.convert import export_state_dict, load_torch_file
from mdeq_jax.engine.state import variable_shapes
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.models import build_model
from tests.helpers import networks, torch_files
from tests.helpers.networks import assert_same, load_config, random_state_dict


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command; returns what it printed."""
    parsed = flags.FLAGS

    def run(*arguments):
        for name in ("config", "input", "output", "export", "inspect", "key"):
            parsed[name].unparse()
        for name in [name for name in parsed if name.startswith("config.")]:
            delattr(parsed, name)
        # Overrides of the config are found in sys.argv, before the flags are parsed.
        monkeypatch.setattr(sys, "argv", ["convert_torch_weights.py", *map(str, arguments)])
        parsed(sys.argv)
        convert_torch_weights.main(None)
        return capsys.readouterr().out

    yield run
    parsed.unparse_flags()


def refusal(command, *arguments):
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    return str(caught.value)


def write(path, state_dict, zipped=True):
    """Writes a state dict as a PyTorch file, without torch."""
    kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
    pickled = torch_files.dumps(
        {
            name: torch_files.tensor(array.shape, key=str(i), kind=kinds[array.dtype.name])
            for i, (name, array) in enumerate(state_dict.items())
        }
    )
    arrays = {str(i): array for i, array in enumerate(state_dict.values())}
    if zipped:
        return torch_files.write_zip(path, pickled, {k: a.tobytes() for k, a in arrays.items()})
    return torch_files.write_legacy(
        path, pickled, {k: (a.size, a.tobytes()) for k, a in arrays.items()}
    )


TINY = "--config=configs/cifar10_tiny.py"
AFFINE = "--config.model.post_gn_affine=True"
FUSED = "--config.model.fuse_weight_norm=True"
RECIPES = {
    "cifar/cls_mdeq_TINY": [],
    "first_version/cifar/cls_mdeq_TINY": [AFFINE],
    "torchdeq/cifar_small": [AFFINE, FUSED],
}


@pytest.mark.parametrize("experiment", RECIPES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_converts_every_kind_of_file(experiment, zipped, command, shapes, tmp_path):
    """Bare, first-version and TorchDEQ files, to a work directory with its config."""
    state_dict = random_state_dict(shapes[experiment])
    path = write(tmp_path / "weights.pkl", state_dict, zipped)
    arguments = [TINY, *RECIPES[experiment]]
    out = command(*arguments, f"--input={path}", f"--output={tmp_path / 'run'}")
    assert "parameters: 15" in out and "recognised as: configs/cifar10_tiny.py" in out
    assert "ignored by name: *.num_batches_tracked: 12 counters" in out
    assert ("deq.func_copy.*: 28 tensors" in out) == experiment.startswith("first_version")
    for flag in RECIPES[experiment]:
        assert flag in out

    overrides = {flag.split(".")[-1].removesuffix("=True"): True for flag in RECIPES[experiment]}
    config = load_config("cifar10_tiny", **overrides)
    variables, step = load_variables(config, tmp_path / "run")
    assert step == 0
    exported = export_state_dict(variables, config)
    assert_same(exported, {name: state_dict[name] for name in exported})
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["post_gn_affine"] == bool(overrides)


def test_exports_a_file_that_torch_loads(command, reference_dir, tmp_path):
    torch = pytest.importorskip("torch")
    path = reference_dir / "mdeq_tiny_cifar10.pkl"
    command(TINY, f"--input={path}", f"--output={tmp_path / 'run'}")
    out = command(TINY, f"--input={tmp_path / 'run'}", f"--export={tmp_path / 'back.pkl'}")
    assert out == f"exported step 0 of {tmp_path / 'run'}\nwrote {tmp_path / 'back.pkl'}\n"
    original, back = (torch.load(file, weights_only=True) for file in (path, tmp_path / "back.pkl"))
    assert list(back) == list(original)
    for name, tensor in original.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(back[name], tensor)
    assert_same(load_torch_file(tmp_path / "back.pkl"), {k: v.numpy() for k, v in back.items()})


def test_exports_what_training_read_from_the_data(command, tmp_path):
    """The config leaves the size of the vocabulary to the data."""
    small = ("d_embed=16", "d_model=16", "n_head=2", "d_head=8", "d_inner=16", "mem_len=4")
    fields = [f"--config.model.transformer.{setting}" for setting in small]
    config = load_config("pydoc_transformer")
    for setting in small:
        name, value = setting.split("=")
        config.model.transformer[name] = int(value)
    config.model.transformer.vocab_size = 11
    shapes = variable_shapes(build_model(config), config)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    save_variables(variables, config, tmp_path / "run")
    arguments = ["--config=configs/pydoc_transformer.py", *fields, f"--input={tmp_path / 'run'}"]
    out = command(*arguments, f"--export={tmp_path / 'back.pkl'}")
    assert f"wrote {tmp_path / 'back.pkl'}" in out
    assert load_torch_file(tmp_path / "back.pkl")["word_emb.emb_layers.0.weight"].shape == (11, 16)


def test_inspects_without_converting(command, reference_dir, tmp_path):
    out = command("--inspect", f"--input={reference_dir / 'mdeq_tiny_cifar10_legacy.pkl'}")
    assert len(out.splitlines()) == 94 + 3
    assert "downsample.0.weight                                 float32  [24, 3, 3, 3]\n" in out
    assert "parameters: 158,890\n" in out
    assert out.endswith("as: configs/cifar10_tiny.py (the original's cifar/cls_mdeq_TINY)\n")
    path = write(tmp_path / "other.pkl", {"layer.weight": np.zeros((2, 3), np.float32)})
    out = command("--inspect", f"--input={path}")
    assert "1 tensors of 6 numbers" in out and "a network of no family here" in out


def test_refusals(command, reference_dir, tmp_path):
    weights = f"--input={reference_dir / 'mdeq_tiny_cifar10.pkl'}"
    output = f"--output={tmp_path / 'run'}"
    assert "Give --config" in refusal(command, weights, output)
    assert "--output or --export" in refusal(command, TINY, weights)
    assert "no such file" in refusal(command, TINY, f"--input={tmp_path / 'none'}", output)
    message = refusal(command, "--config=configs/imagenet_small.py", weights, output)
    assert "missing" in message and "configs/cifar10_tiny.py" in message
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "file/run"):
        message = refusal(command, TINY, weights, f"--output={tmp_path / name}")
        assert f"{tmp_path / 'file'} is a file, so it cannot be the work directory" in message
    assert "no state dict under the key" in refusal(command, TINY, weights, output, "--key=ema")
    command(TINY, weights, output)
    assert "holds checkpoints already" in refusal(command, TINY, weights, output)
    assert "work directory already" in refusal(
        command, TINY, f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'other'}"
    )
    message = refusal(
        command, TINY, AFFINE, f"--input={tmp_path / 'run'}", f"--export={tmp_path / 'x'}"
    )
    assert "model.post_gn_affine: False there, True in this config" in message


def test_export_without_torch(command, reference_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    weights = reference_dir / "mdeq_tiny_cifar10.pkl"
    message = refusal(command, TINY, f"--input={weights}", f"--export={tmp_path / 'x.pkl'}")
    assert "needs torch, which is not installed" in message


def test_summary_names_a_segmentation_files_wrapper(command, reference_dir):
    path = reference_dir / "seg_four_scales.pkl"
    out = command("--inspect", f"--input={path}")
    assert "names begin with 'model.'" in out and "mdeq_segmenter" in out
    assert networks.SMALL_MODELS[2] == path.stem
