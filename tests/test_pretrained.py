"""Saving and loading models to share: byte for byte, with a card of measured figures."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from mdeq_jax import pretrained
from mdeq_jax.configs import camvid_tiny, digits, repmlp_digits
from mdeq_jax.engine.saved_config import read_config
from mdeq_jax.engine.state import variable_shapes
from mdeq_jax.engine.variables import save_variables
from mdeq_jax.models import build_model
from mdeq_jax.training import evaluate
from tests.helpers.tiny import SINGLE_SCALE, TINY, override


def random_variables(config, seed=0):
    """Variables of a config that nothing was compiled for; some are subnormal, NaN or -0."""
    rng = np.random.default_rng(seed)
    special = np.float32([np.nan, -0.0, 1e-40, np.inf])
    return jax.tree.map(
        lambda x: np.resize(
            np.append(rng.normal(size=x.size)[:-1], rng.choice(special)), x.shape
        ).astype(x.dtype),
        variable_shapes(build_model(config), config),
    )


def leaves(tree):
    return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A work directory of an untrained network, its config, and the folder that was saved."""
    config = override(digits.get_config(), {**TINY, **SINGLE_SCALE})
    path = tmp_path_factory.mktemp("pretrained")
    model = build_model(config)
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), images))
    save_variables(variables, config, path / "run")
    metrics = evaluate(config, path / "run")
    lines = [{"step": 0, "train/loss": 1.0}, {**metrics, "eval/loss": metrics["eval/loss"]}]
    (path / "run" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    pretrained.save(path / "run", path / "model")
    return path, config, metrics


@pytest.mark.parametrize("module", [digits, camvid_tiny, repmlp_digits])
def test_every_bit_survives(module, tmp_path):
    config = module.get_config()
    variables = random_variables(config)
    save_variables(variables, config, tmp_path / "run")
    folder = pretrained.save(tmp_path / "run", tmp_path / "model")
    model, loaded, loaded_config = pretrained.load(folder)
    assert loaded_config.to_json_best_effort() == config.to_json_best_effort()
    assert loaded_config.is_locked and type(model) is type(build_model(config))
    expected, actual = leaves(variables), leaves(loaded)
    assert expected.keys() == actual.keys() and loaded.keys() == {"params", "batch_stats"}
    for name, array in expected.items():
        assert array.dtype == actual[name].dtype and array.tobytes() == actual[name].tobytes()
    again = pretrained.save(tmp_path / "run", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_folder_evaluates_as_its_work_directory(tiny):
    path, config, metrics = tiny
    again = evaluate(read_config(path / "model"), path / "model")
    timing = "eval/images_per_second"
    assert {**again, timing: 0} == {**metrics, timing: 0}
    assert sorted(x.name for x in (path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    wider = override(config.copy_and_resolve_references(), {"model.channels": (16,)})
    with pytest.raises(ValueError, match=r"model\.channels: \[8\] there, \[16\] in this config"):
        evaluate(wider, path / "model")


def test_the_card_holds_the_figures_that_were_measured(tiny):
    path, _, metrics = tiny
    card = (path / "model" / "README.md").read_text()
    assert f"| accuracy | {100 * metrics['eval/accuracy']:.2f} % |" in card
    assert f"| loss | {metrics['eval/loss']:.4f} |" in card
    assert f"| images | {metrics['eval/examples']:,} |" in card
    assert card.startswith("---\nlibrary_name: mdeq_jax\n")


def test_without_an_evaluation_the_card_claims_nothing(tiny, tmp_path):
    path, _, _ = tiny
    lines = (path / "run" / "metrics.jsonl").read_text()
    try:
        (path / "run" / "metrics.jsonl").write_text(lines.replace('"step": 0', '"step": 11'))
        card = (pretrained.save(path / "run", tmp_path / "model") / "README.md").read_text()
    finally:
        (path / "run" / "metrics.jsonl").write_text(lines)
    assert "has not been evaluated" in card and "accuracy" not in card


def test_extra_files_go_along(tiny, tmp_path, monkeypatch):
    path, _, _ = tiny
    (path / "run" / "names.json").write_text("{}")
    monkeypatch.setattr(
        "mdeq_jax.tasks.classification.task.Classification.model_files",
        ("names.json", "absent.json"),
    )
    folder = pretrained.save(path / "run", tmp_path / "a", extra_files=["metrics.jsonl"])
    assert (folder / "names.json").read_text() == "{}" and (folder / "metrics.jsonl").is_file()
    with pytest.raises(FileNotFoundError, match=r"holds no nothing\.txt"):
        pretrained.save(path / "run", tmp_path / "b", extra_files=["nothing.txt"])


def test_a_name_on_the_hub_is_downloaded(tiny, monkeypatch):
    """The download is a stub: no test reaches the hub."""
    path, config, _ = tiny
    calls = []

    def snapshot_download(repo_id, *, revision=None, local_dir=None):
        calls.append((repo_id, revision, local_dir))
        return str(path / "model")

    stub = types.ModuleType("huggingface_hub")
    stub.__dict__["snapshot_download"] = snapshot_download
    stub.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    _, _, loaded = pretrained.load("somebody/digits", revision="v1")
    assert calls == [("somebody/digits", "v1", None)]
    assert loaded.to_json_best_effort() == config.to_json_best_effort()


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setattr("mdeq_jax.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="which the extra 'hub' installs"):
        pretrained.load("somebody/digits")


def test_bad_folders(tiny, tmp_path):
    path, _, _ = tiny
    with pytest.raises(FileNotFoundError, match="neither a folder nor a name"):
        pretrained.load(tmp_path / "nothing" / "at" / "all")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        pretrained.load(tmp_path)
    with pytest.raises(ValueError, match="holds a model already"):
        pretrained.save(path / "run", path / "model")
    config = (path / "model" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        pretrained.load(tmp_path)
    weights = (path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        pretrained.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(config.replace('"final_channels": 16', '"finl": 16'))
    with pytest.raises(ValueError, match=r"does not have: model\.finl"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text(
        config.replace('"final_channels": 16', '"final_channels": 24')
    )
    with pytest.raises(ValueError, match=r"does not fit its config:\n.*but the config needs"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the config of a model"):
        pretrained.load(tmp_path)


def test_arguments_with_the_folder(tiny):
    folder = tiny[0] / "model"
    for given in ([f"--pretrained={folder}"], ["-pretrained", str(folder)]):
        name, config, *rest = pretrained.complete_arguments(["eval.py", *given, "--sweep_steps=1"])
        assert config.startswith("--config=") and config.endswith(f":{folder}")
        assert (name, rest) == ("eval.py", [f"--pretrained={folder}", "--sweep_steps=1"])
    incomplete = ["eval.py", "--pretrained"]  # the parser of flags explains it
    assert pretrained.complete_arguments(incomplete) == incomplete


def test_eval_takes_the_folder_with_its_config(tiny, run_script):
    path, _, metrics = tiny
    done = subprocess.run(
        [
            sys.executable,
            "eval.py",
            "--pretrained",
            path / "model",
            "--config.eval.batch_size=90",
        ],
        env=run_script.environment(),
        cwd=run_script.root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout[done.stdout.index("{") :])
    assert printed["eval/accuracy"] == pytest.approx(metrics["eval/accuracy"])
