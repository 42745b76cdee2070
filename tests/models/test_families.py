"""The table of families: its rows fit the configs, and a family can be added from outside."""

import inspect
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import default
from mdeq_jax.hardware import compiling_for
from mdeq_jax.models import (
    MODELS,
    EquilibriumModel,
    Family,
    ForwardOptions,
    ModelOutput,
    build_model,
    family_of,
)


class Perceptron(nn.Module):
    """A model without an equilibrium, of vectors."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, inputs, *, train=False, forward=None):
        hidden = nn.relu(nn.Dense(self.width)(inputs))
        return ModelOutput(nn.Dense(self.classes)(hidden))


def validate(config):
    if config.model.num_classes < 2:
        raise ValueError(f"model.num_classes must be at least 2; got {config.model.num_classes}.")


PERCEPTRON = Family(
    build=lambda config: Perceptron(config.model.final_channels, config.model.num_classes),
    validate=validate,
    architecture_fields=("name", "final_channels", "num_classes"),
    has_equilibrium=False,
)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(MODELS, "perceptron", PERCEPTRON)
    config = default.get_config()
    config.model.name, config.model.final_channels = "perceptron", 8
    return config


def test_a_family_without_an_equilibrium_from_outside(config):
    model = build_model(config)
    inputs = jnp.ones((4, 6))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    for options in (ForwardOptions(), ForwardOptions(pretraining_layers=2, step_budget=3)):
        run = partial(model.apply, train=True, forward=options)
        out = jax.eval_shape(run, variables, inputs)
        assert out.logits.shape == (4, 10)
        assert out.solution is None and out.z_star is None and out.jacobian_loss.shape == ()
    assert not family_of(config).has_equilibrium


def test_its_settings_are_validated(config):
    config.model.num_classes = 1
    with pytest.raises(ValueError, match=r"model\.num_classes must be at least 2; got 1"):
        build_model(config)


def test_an_unknown_family_lists_the_choices():
    config = default.get_config()
    config.model.name = "convolution"
    with pytest.raises(ValueError, match=r"model.name must be one of \['deq_transformer', .*'conv"):
        build_model(config)


def config_and_inputs(name):
    """The defaults of a family, complete, and the shape of inputs that its model takes."""
    config = default.get_config(name)
    config.data.image_size = (224, 224)
    for part in ("transformer", "trellisnet"):
        if part in config.model:
            config.model[part].vocab_size = 50
            return config, jax.ShapeDtypeStruct((1, 5), jnp.int32)
    return config, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def fields_of(part):
    return part if isinstance(part, ConfigDict) else ()


@pytest.mark.parametrize("name", MODELS)
def test_rows_name_fields_and_parts_that_exist(name):
    (config, inputs), family = config_and_inputs(name), MODELS[name]
    fields = {*family.architecture_fields, *family.ignored_fields, *family.transfer_fields}
    parts = {f"{part}.{field}" for part in config.model for field in fields_of(config.model[part])}
    assert fields <= set(config.model) | parts
    assert not set(family.architecture_fields) & set(family.ignored_fields)
    variables = jax.eval_shape(build_model(config).init, jax.random.key(0), inputs)
    assert set(family.transferable) < variables["params"].keys()


@pytest.mark.parametrize("name", MODELS)
def test_precision_and_kernels_are_checked(name):
    config = config_and_inputs(name)[0]
    config.precision = "float16"
    with pytest.raises(ValueError, match=r"precision must be one of .*; got 'float16'"):
        build_model(config)
    config.precision, config.pallas = "float32", True
    with compiling_for("tpu"), pytest.raises(ValueError, match=r"pallas=True .*'tpu'"):
        build_model(config)


@pytest.mark.parametrize("name", [n for n, family in MODELS.items() if family.has_equilibrium])
def test_models_with_an_equilibrium_offer_its_interface(name):
    model = build_model(config_and_inputs(name)[0])
    for method in ("fixed_point_problem", "solve", "read_out"):
        expected = inspect.signature(getattr(EquilibriumModel, method)).parameters
        offered = inspect.signature(getattr(type(model), method)).parameters
        assert len(offered) == len(expected)
        keywords = [p.name for p in expected.values() if p.kind is p.KEYWORD_ONLY]
        assert set(keywords) <= offered.keys()


@pytest.mark.parametrize("row", [ForwardOptions, ModelOutput])
def test_calls_between_engine_and_models_are_defaulted(row: type[NamedTuple]):
    """A new field must not break models and engines that do not know it."""
    assert set(row._fields) - row._field_defaults.keys() <= {"logits"}
