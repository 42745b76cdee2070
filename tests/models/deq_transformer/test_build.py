"""The released models built abstractly, their initialisation, and settings that cannot work."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.convert import export_state_dict
from mdeq_jax.convert.entries import count_parameters
from mdeq_jax.convert.language.names import transformer_table, trellisnet_table
from mdeq_jax.models.deq_transformer.build import (
    build_deq_transformer,
    build_transformer,
    shared_parameters,
)
from mdeq_jax.models.deq_transformer.validate import validate
from mdeq_jax.models.trellisnet.build import build_deq_trellisnet
from tests.helpers.language import (
    close,
    transformer_config,
    trellisnet_config,
)

TOKENS = jax.ShapeDtypeStruct((1, 2), jnp.int32)
RELEASED = ("wt103_deq_transformer", "wt103_deq_transformer_reg", "wt103_deq_transformer_preln_reg")
EACH_USE = {"model.transformer.projection_updates": "each_use"}


def settings_of(reference_dir, folder, name):
    every = json.loads((reference_dir / folder / "hyperparameters.json").read_text())
    return every[name] if name else every


def shapes_of(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def assert_shapes_are_the_tables(model, table):
    assert shapes_of(model) == {
        entry.path: entry.rule.to_flax(np.empty(entry.shape, bool)).shape
        for entry in table
        if entry.path is not None
    }


@pytest.mark.parametrize("name", RELEASED)
def test_released_transformers(name, reference_dir):
    listed = json.loads((reference_dir / "deq_transformer/full_size_shapes.json").read_text())[name]
    settings = settings_of(reference_dir, "deq_transformer", name)
    counts = {
        "each_use": listed["n_parameters_as_the_script_counts"],
        "once": listed["n_parameters_with_shared_projections_once"],
    }
    assert counts == {"each_use": 97_851_488, "once": 97_691_888}
    for updates, expected in counts.items():
        fields = {"model.transformer.projection_updates": updates}
        config = transformer_config(settings, fields)
        validate(config)
        table = transformer_table(config.model.transformer)
        names = {entry.torch_name: list(entry.shape) for entry in table}
        assert list(names) == list(listed["state_dict"]) and len(names) == 40
        assert names == listed["state_dict"]
        assert count_parameters(table) == expected
        assert_shapes_are_the_tables(build_deq_transformer(config), table)
    modules = {"word_emb": "embedding", "inject_conv": "injection", "func": "cell"}
    for original, ours in modules.items():
        own = {e.path: e.shape for e in table if e.path and e.path[1] == ours}
        assert sum(map(math.prod, own.values())) == listed["by_module"][original]
    assert listed["n_non_embedding"] == 71_225_100


@pytest.mark.parametrize(("name", "nhid"), [("wt103_nhid1500", 1500), ("wt103_nhid1400", 1400)])
def test_released_trellisnets(name, nhid, reference_dir):
    listed = json.loads((reference_dir / "trellisnet" / "full_size_shapes.json").read_text())[name]
    settings = settings_of(reference_dir, "trellisnet", None)
    settings |= {"nhid": nhid, "splits": settings["split_softmax_cutoffs"]}
    config = trellisnet_config(settings)
    model = build_deq_trellisnet(config)
    table = trellisnet_table(config.model.trellisnet)
    assert count_parameters(table) == listed["n_parameters_as_the_script_counts"]
    assert_shapes_are_the_tables(model, table)
    loss = listed["criterion_state_dict_not_saved_with_the_model"]
    expected = listed["state_dict"] | {f"criterion.{name}": shape for name, shape in loss.items()}
    for entry in table:
        assert list(entry.shape) == expected[entry.torch_name]


def test_initialisation(reference_dir):
    """Standard deviations of a middle-sized model, entry by entry."""
    path = reference_dir / "deq_transformer" / "initialisation_statistics.json"
    for name, listed in json.loads(path.read_text()).items():
        entries = {key: e for key, e in listed.items() if isinstance(e, dict) and "shape" in e}
        rows = [e["shape"] for k, e in entries.items() if k.startswith("word_emb.emb_layers")]
        cutoffs = tuple(np.cumsum([shape[0] for shape in rows])[:-1].tolist())
        settings = {
            "n_token": sum(shape[0] for shape in rows),
            "cutoffs": cutoffs,
            "div_val": rows[0][1] // rows[1][1],
            "tie_projs": [False] * len(rows),
            "d_embed": rows[0][1],
            "d_model": entries["word_emb.emb_projs.0.weight"]["shape"][0],
            "n_head": entries["func.dec_attn.r_w_bias"]["shape"][0],
            "d_head": entries["func.dec_attn.r_w_bias"]["shape"][1],
            "d_inner": entries["func.pos_ff.ff1_net.bias"]["shape"][0],
            "wnorm": "func.pos_ff.ff1_net.weight_g" in entries,
        }
        config = transformer_config(settings)
        model = build_deq_transformer(config)
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        for key, weight in export_state_dict(variables, config).items():
            expected = entries[key] if key in entries else None
            if expected is None or key == "pos_emb.inv_freq":
                continue
            assert list(weight.shape) == expected["shape"], f"{name} {key}"
            # Relative error of a standard deviation: 1 / sqrt(2 n), of each of the two draws.
            tolerance = 5 / math.sqrt(weight.size) * expected["std"]
            assert abs(weight.std() - expected["std"]) <= tolerance, f"{name} {key}"
            error = 6 * expected["std"] / math.sqrt(weight.size)
            assert abs(weight.mean() - expected["mean"]) <= error + 1e-12, f"{name} {key}"


SMALL = {"n_token": 20, "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 3}, r"n_head \* d_head must be d_model"),
        ({"d_model": 9, "n_head": 3, "d_head": 3}, "d_model must be even"),
        ({"vocab_size": 1}, "vocab_size must be at least 2"),
        ({"cutoffs": (5, 5), "tie_projs": (False,) * 3}, "cutoffs must rise"),
        ({"cutoffs": (5, 10)}, "tie_projs needs one entry for each of the 3 clusters"),
        ({"cutoffs": (5, 10), "div_val": 4, "tie_projs": (False,) * 3}, "Lower div_val"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"mem_len": -1}, "mem_len must not be negative"),
        ({"projection_updates": "twice"}, "projection_updates must be one of"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
    ],
)
def test_refuses(fields, message):
    config = transformer_config(SMALL)
    with config.unlocked():
        config.model.transformer.update(fields)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_a_vocabulary_that_the_data_decide():
    config = transformer_config(SMALL)
    with config.unlocked():
        config.model.transformer.vocab_size = None
    validate(config)  # as before the data are read
    with pytest.raises(ValueError, match=r"model\.transformer\.vocab_size is not known"):
        build_deq_transformer(config)


def test_shared_parameters():
    cutoffs = {"cutoffs": [5, 10], "tie_projs": [False, True, True]}
    config = transformer_config({**SMALL, **cutoffs, "div_val": 2}, EACH_USE)
    assert shared_parameters(config) == (
        (("embedding", "projection1"), ("softmax", "projection1")),
        (("embedding", "projection2"), ("softmax", "projection2")),
    )
    config = transformer_config({**SMALL, **cutoffs, "d_embed": 4}, EACH_USE)
    shared = (("embedding", "projection0"), ("softmax", "projection1"), ("softmax", "projection2"))
    assert shared_parameters(config) == (shared,)
    assert shared_parameters(transformer_config({**SMALL, **cutoffs, "div_val": 2})) == ()


def test_the_explicit_transformer_applies_its_layers():
    config = transformer_config({**SMALL, "n_layer": 3})
    tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    model = build_deq_transformer(config)
    variables = model.init(jax.random.key(0), tokens)
    plain = build_transformer(config).apply(variables, tokens)
    problem = model.fixed_point_problem(variables, tokens)
    z = problem.z0
    for _ in range(3):
        z = problem.evaluate(z)
    assert plain.solution is None
    close(plain.z_star, z, 1e-5)
