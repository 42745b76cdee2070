"""Starting from another task's network: stem and cell are its, the head is fresh."""

import chex
import jax
import numpy as np
import optax
import pytest

from configs import default, digits
from mdeq_jax import pretrained
from mdeq_jax.convert import convert_state_dict
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.engine.state import make_state
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.engine.warm_start import start_from_checkpoint
from mdeq_jax.training import train_and_evaluate
from tests.helpers.tiny import SINGLE_SCALE, TINY, override

FOUR_SCALES = dict(
    channels=(8, 8, 16, 16),
    num_blocks=(1,) * 4,
    big_kernels=(0,) * 4,
    expansion=2,
    num_groups=4,
    downsample_times=2,
    post_gn_affine=True,
)


def classifier(**model):
    config = default.get_config()
    config.model.update(FOUR_SCALES | dict(head_channels=(4,) * 4, num_classes=12) | model)
    config.data.image_size = (64, 64)
    return config


def segmenter(**model):
    config = default.get_config()
    config.model.update(FOUR_SCALES | dict(name="mdeq_segmenter", num_classes=5) | model)
    config.data.image_size = (64, 96)
    return config


def random_variables(config, seed):
    rng = np.random.default_rng(seed)
    table = name_table(config.model)
    state_dict = {e.torch_name: rng.random(e.shape, np.float32) for e in table if e.path}
    return convert_state_dict(state_dict, config)


def state_of(config, seed):
    variables = random_variables(config, seed)
    return make_state(variables, optax.identity())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A work directory of a classifier, and its variables."""
    workdir = tmp_path_factory.mktemp("source") / "classifier"
    variables = random_variables(classifier(), seed=1)
    save_variables(variables, classifier(), workdir)
    return workdir, variables


def test_saved_variables_come_back(source):
    variables, step = load_variables(classifier(), source[0])
    assert step == 0
    chex.assert_trees_all_equal(variables, source[1])


def test_a_work_directory_is_not_overwritten(source):
    with pytest.raises(ValueError, match="holds checkpoints already"):
        save_variables(source[1], classifier(), source[0])


def test_segmenter_starts_from_a_classifier(source, capsys):
    workdir, variables = source
    config = segmenter()
    config.init.from_checkpoint = str(workdir)
    fresh = state_of(config, seed=2)
    state = start_from_checkpoint(fresh, config)
    for part in ("stem", "cell"):
        chex.assert_trees_all_equal(state.params[part], variables["params"][part])
    chex.assert_trees_all_equal(state.batch_stats["stem"], variables["batch_stats"]["stem"])
    chex.assert_trees_all_equal(state.params["head"], fresh.params["head"])
    chex.assert_trees_all_equal(state.batch_stats["head"], fresh.batch_stats["head"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Starting from {workdir} (mdeq_classifier, step 0):"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["stem", "loaded"],
        ["cell", "loaded"],
        ["head", "fresh"],
    ]


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (dict(post_gn_affine=False), "params/cell/post0/norm/bias: not in this config"),
        (dict(fuse_weight_norm=True), "params/cell/fuse1_0_0/conv/g: not there"),
        (dict(expansion=3), r"params/cell/branch0_block0/conv1/g: \(16,\) there, \(24,\) here"),
        (dict(num_groups=2), "model.num_groups: 4 there, 2 here"),
        (dict(downsample_times=1), "model.downsample_times: 2 there, 1 here"),
    ],
)
def test_another_stem_or_cell_is_refused(source, model, difference):
    config = segmenter(**model)
    config.init.from_checkpoint = str(source[0])
    with pytest.raises(ValueError, match=difference):
        start_from_checkpoint(state_of(config, seed=2), config)


def test_tilde_is_the_home_directory(source, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(source[0].parent))
    config = segmenter()
    config.init.from_checkpoint = f"~/{source[0].name}"
    start_from_checkpoint(state_of(config, seed=2), config)
    assert f"Starting from {source[0]} " in capsys.readouterr().out


def test_no_checkpoint_there(tmp_path):
    config = segmenter()
    config.init.from_checkpoint = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json"):
        start_from_checkpoint(state_of(config, seed=2), config)


def small_digits(**model):
    """Digits with a small network, three pretraining steps and a cheap evaluation."""
    config = digits.get_config()
    config = override(config, {**TINY, **SINGLE_SCALE})
    config.model.update(model)
    config.train.update(dict(batch_size=479, epochs=1, pretrain_steps=3, pretrain_layers=2))
    config.train.update(dict(learning_rate=1e-9, schedule="constant"))  # what was loaded shows
    for solver in (config.solver.forward, config.solver.backward):
        solver.update(dict(name="fixed_point_iteration", max_steps=2))
    config.eval.batch_size = 360
    return config


@pytest.mark.slow
def test_training_starts_from_a_network_with_other_classes(tmp_path, capsys):
    source = small_digits(num_classes=7)
    variables = random_variables(source, seed=1)
    save_variables(variables, source, tmp_path / "run of 7")
    pretrained.save(tmp_path / "run of 7", tmp_path / "source")
    config = small_digits()
    config.init.from_checkpoint = str(tmp_path / "source")  # or the work directory itself
    train_and_evaluate(config, tmp_path / "run")
    assert "head   fresh" in capsys.readouterr().out
    trained, step = load_variables(config, tmp_path / "run")
    assert step == 3
    for part in ("stem", "cell"):
        ours, expected = trained["params"][part], variables["params"][part]
        chex.assert_trees_all_close(ours, expected, rtol=1e-7, atol=1e-6)
    assert trained["params"]["head"]["classifier"]["kernel"].shape == (16, 10)


def test_training_starts_from_a_converted_network(tmp_path, capsys):
    config = small_digits()
    variables = random_variables(config, seed=1)
    save_variables(variables, config, tmp_path)
    metrics = train_and_evaluate(config, tmp_path)
    assert "Starting from the network in the work directory" in capsys.readouterr().out
    assert metrics["step"] == 3
    trained, _ = load_variables(config, tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        trained["params"],
        variables["params"],
    )
