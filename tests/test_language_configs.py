"""The configs of language models: they build, and the released ones are the original's."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.convert.families import weight_names
from mdeq_jax.engine.schedules import learning_rate
from mdeq_jax.engine.state import build_optimizer
from mdeq_jax.models import build_model, family_of

FOLDER = Path(__file__).parent.parent / "configs"
PARAMETERS = {
    "wikitext103_transformer": 97_851_488,
    "wikitext103_transformer_reg": 97_851_488,
    "wikitext103_transformer_preln_reg": 97_851_488,
    "wikitext103_phantom": 97_691_888,
    "wikitext103_trellisnet": 174_168_738,
    "enwik8_small": 8_513_230,
    "pydoc_transformer": 212_200,
    "pydoc_transformer_long": 212_200,
    "wikitext103_small": 2_005_042,
}
# Where the config leaves the number of tokens to the data.
VOCABULARY = {
    "enwik8_small": 206,
    "pydoc_transformer": 104,
    "pydoc_transformer_long": 104,
    "wikitext103_small": 14_000,
}
TRANSFORMERS = [name for name in PARAMETERS if name.startswith("wikitext103_transformer")]
TRAINING_TOKENS = 103_227_021  # of WikiText-103


def load(name):
    module = importlib.import_module(f"mdeq_jax.configs.{name}")
    return module.get_config(), module.__doc__


def settings_of(reference_dir, name):
    path = reference_dir / "deq_transformer" / "hyperparameters.json"
    return json.loads(path.read_text())[name.replace("wikitext103", "wt103_deq")]


@pytest.mark.parametrize("name", PARAMETERS)
def test_builds_with_the_tensors_of_the_name_table(name):
    config, header = load(name)
    assert config.name == name and config.is_locked
    assert f"python train.py --config=configs/{name}.py" in header
    config = config.copy_and_resolve_references()
    if name in VOCABULARY:
        assert config.model.transformer.vocab_size is None
        config.model.transformer.vocab_size = VOCABULARY[name]
    family_of(config).validate(config)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(build_model(config).init, jax.random.key(0), tokens)
    shapes = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert shapes == {
        entry.path: entry.rule.to_flax(np.empty(entry.shape, bool)).shape
        for entry in weight_names(config).table(config)
        if entry.path is not None
    }
    assert sum(np.prod(shape) for shape in shapes.values()) == PARAMETERS[name]
    build_optimizer(config.train, 300_000)


def steps_per_epoch(config):
    column = TRAINING_TOKENS // config.train.batch_size
    return -(-(column - 1) // config.data.segment_length)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_released_transformers(name, reference_dir):
    config, settings = load(name)[0], settings_of(reference_dir, name)
    model, train, solver = config.model.transformer, config.train, config.solver
    own = {**model, "wnorm": model.weight_norm, "n_token": model.vocab_size}
    shared = own.keys() & settings.keys()
    assert len(shared) == 16
    for field in shared:
        expected = settings[field]
        assert own[field] == (tuple(expected) if isinstance(expected, list) else expected), field
    assert (solver.forward.name, solver.forward.max_steps) == ("anderson", settings["f_thres"])
    assert (solver.backward.name, solver.backward.max_steps) == ("broyden", settings["b_thres"])
    assert {k: solver.forward[k] for k in ("m", "lam", "beta")} == settings["anderson"]
    for direction in (solver.forward, solver.backward):
        assert direction.tol == settings["solver_eps"] and direction.stop_mode == "rel"
    assert train.batch_size == settings["batch_size"] and train.grad_clip == settings["clip"]
    assert train.pretrain_steps == settings["pretrain_steps"]
    assert train.pretrain_layers == settings["n_layer"]
    assert train.random_forward_delta == settings["rand_f_thres_delta"]
    assert config.data.segment_length == settings["tgt_len"] == settings["eval_tgt_len"]
    assert config.jacobian.weight == settings["jac_loss_weight"]
    assert config.jacobian.frequency == settings["jac_loss_freq"]
    assert (config.jacobian.increment_every or 0) == settings["jac_incremental"]
    assert model.projection_updates == "each_use"
    steps = round(train.epochs * steps_per_epoch(config))
    assert steps == settings["max_step"]
    assert round(config.eval.every_epochs * steps_per_epoch(config)) == settings["eval_interval"]
    rate, warmup, peak = learning_rate(train, steps), settings["warmup_step"], settings["lr"]
    np.testing.assert_allclose(rate(0), peak, rtol=1e-6)
    np.testing.assert_allclose(rate(100), 100 * peak / warmup, rtol=1e-5)
    cosine = peak * (1 + np.cos(np.pi * 100_000 / steps)) / 2
    np.testing.assert_allclose(rate(100_000), cosine, rtol=1e-5)


def test_released_trellisnet(reference_dir):
    config, _ = load("wikitext103_trellisnet")
    path = reference_dir / "trellisnet" / "hyperparameters.json"
    settings = json.loads(path.read_text())
    model, train = config.model.trellisnet, config.train
    fields = {"vocab_size": "n_token", "cutoffs": "split_softmax_cutoffs", "weight_norm": "wnorm"}
    for field in ("ninp", "nhid", "nout", "kernel_size", "dilation", "dropout", "dropouti"):
        assert model[field] == settings[field], field
    for field, original in fields.items():
        expected = settings[original]
        assert model[field] == (tuple(expected) if isinstance(expected, list) else expected), field
    assert model.dropouth == settings["dropouth"]
    assert train.learning_rate == settings["lr"] and train.grad_clip == settings["clip"]
    assert list(train.decay_epochs) == settings["when"]
    assert train.batch_size == settings["batch_size"]
    assert train.pretrain_steps == settings["pretrain_steps"]
    assert train.pretrain_layers == settings["n_layer_pretraining"]
    assert config.data.segment_length == settings["seq_len"]
    assert config.eval.batch_size == settings["eval_batch_size"]
    for solver in (config.solver.forward, config.solver.backward):
        assert (solver.name, solver.max_steps) == ("broyden", settings["f_thres"])
    numbers = settings["seq_len"] * 2 * (settings["nhid"] + settings["nout"])
    np.testing.assert_allclose(config.solver.forward.tol, 1e-6 * numbers**0.5)
    np.testing.assert_allclose(config.solver.backward.tol, 2e-10 * numbers**0.5)


def test_all_are_here():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names >= PARAMETERS.keys()
