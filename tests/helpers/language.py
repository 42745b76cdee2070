"""Language models of the reference, converted, and the small configs that tests share."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from configs import default
from mdeq_jax.convert import convert_state_dict, load_torch_file
from mdeq_jax.convert.families import weight_names
from tests.helpers.tiny import override

TRANSFORMER = {
    "vocab_size": 30,
    "cutoffs": (),
    "div_val": 1,
    "tie_projs": (False,),
    "projection_updates": "once",
    "d_embed": 16,
    "d_model": 16,
    "n_head": 2,
    "d_head": 8,
    "d_inner": 40,
    "n_layer": 2,
    "pre_lnorm": False,
    "weight_norm": True,
    "local_size": 0,
    "mem_len": 8,
    "dropout": 0.0,
    "dropatt": 0.0,
}
TRELLISNET = {
    "vocab_size": 50,
    "cutoffs": (),
    "ninp": 12,
    "nhid": 36,
    "nout": 12,
    "kernel_size": 2,
    "dilation": 1,
    "n_layer": 4,
    "weight_norm": True,
    "last_row_is_padding": False,
    "dropout": 0.0,
    "dropouti": 0.0,
    "dropouth": 0.0,
}
SOLVED = {
    "solver.forward.max_steps": 60,
    "solver.forward.tol": 1e-14,
    "solver.backward.max_steps": 60,
    "solver.backward.tol": 1e-14,
}
RENAMED = {"n_token": "vocab_size", "wnorm": "weight_norm", "splits": "cutoffs"}


def language_config(family, section, defaults, settings, fields=()):
    """A config with `model[section]` as the reference's file has it."""
    config = default.get_config()
    config.model.name = family
    own = dict(defaults)
    for name, value in settings.items():
        name = RENAMED.get(name, name)
        if name in own:
            own[name] = tuple(value) if isinstance(value, list) else value
    with config.unlocked():
        config.model[section] = ConfigDict(own)
    return override(config, {**SOLVED, **dict(fields)})


def transformer_config(settings, fields=()):
    return language_config("deq_transformer", "transformer", TRANSFORMER, settings, fields)


def trellisnet_config(settings, fields=()):
    return language_config("deq_trellisnet", "trellisnet", TRELLISNET, settings, fields)


class Reference(NamedTuple):
    """A converted model, and what the original computed with it."""

    config: object
    model: object
    variables: dict
    arrays: dict
    dtype: type
    tol: float

    def array(self, name):
        """A floating array of the reference, in the type of the test."""
        return jnp.asarray(self.arrays[name], self.dtype)

    def time_last(self, name):
        """`(B, C, T)` of the reference as `[B, T, C]`."""
        return self.array(name).swapaxes(-1, -2)

    def time_first(self, name):
        """`(T, B, ...)` of the reference as `[B, T, ...]`."""
        return self.array(name).swapaxes(0, 1)

    def segment(self, index):
        """Inputs and targets `[B, T]` of a segment."""
        length = self.arrays["word_emb_segment0"].shape[1]
        if self.config.model.name == "deq_trellisnet":
            length = self.arrays["word_emb_segment0"].shape[2]
        tokens = jnp.asarray(self.arrays["tokens"].T, jnp.int32)
        start = index * length
        return tokens[:, start : start + length], tokens[:, start + 1 : start + length + 1]

    @property
    def num_segments(self):
        return sum(name.startswith("word_emb_segment") for name in self.arrays)

    def gradients_close(self, gradients, prefix, arrays=None, tol=None):
        """Gradients of the parameters against the arrays "PREFIX/KEY"."""
        assert_gradients(self.config, gradients, arrays or self.arrays, prefix, tol or self.tol)


def close(actual, expected, tol, name=""):
    """In the Euclidean norm, relative."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} and {expected.shape}"
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error < tol, f"{name}: relative error {error:.1e}"


def assert_gradients(config, gradients, arrays, prefix, tol):
    """A tied parameter's gradient is the sum of those of its uses, under any of its names.

    The reference reports each use of a tied projection alone, and only one name of a tied table.
    """
    exported = export_float64(gradients, config)
    expected = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    assert len(expected) > 5
    total = np.sqrt(sum(np.sum(np.square(v)) for v in expected.values()))
    for key in expected:
        own = combined(config, expected, key)
        error = np.linalg.norm(exported[key] - own)
        # A gradient that is zero but for rounding is compared with all of them.
        assert error < tol * max(np.linalg.norm(own), 1e-3 * total), f"{key}: {error:.1e}"


def combined(config, arrays, key):
    """The reference's gradient of `key`, summed over the keys that share its numbers."""
    if config.model.name == "deq_trellisnet":
        return arrays[key]
    paths = {e.torch_name: e.path for e in weight_names(config).table(config)}
    same = [name for name in arrays if paths[name] == paths[key]]
    return sum(arrays[name] for name in same)


def export_float64(tree, config):
    """`export_state_dict` in float64."""
    leaves = flatten_dict({"params": tree})
    return {
        entry.torch_name: np.asarray(entry.rule.to_torch(np.asarray(leaves[entry.path])))
        for entry in weight_names(config).table(config)
        if entry.path is not None
    }


def import_float64(state_dict, config):
    """`convert_state_dict` in float64."""
    variables = {}
    for entry in weight_names(config).table(config):
        if entry.path is not None:
            variables[entry.path] = np.float64(entry.rule.to_flax(state_dict[entry.torch_name]))
    return unflatten_dict(variables)


def load_reference(folder, name, make_config, build, fields=(), dtype=jnp.float64, tol=1e-6):
    """The model `name` of a folder of the reference."""
    settings = json.loads((folder / f"{name}.json").read_text())
    state_dict = load_torch_file(folder / f"{name}.pkl")
    config = make_config(settings.get("model", settings), fields)
    variables = convert_state_dict(state_dict, config)
    variables = jax.tree.map(lambda w: jnp.asarray(w, dtype), variables)
    model = build(config)
    if "pos_emb.inv_freq" in state_dict:
        model = model.clone(frequencies=tuple(state_dict["pos_emb.inv_freq"].tolist()))
    arrays = dict(np.load(folder / f"{name}.npz"))
    return Reference(config, model, variables, arrays, dtype, tol)
