"""The four small models of the reference."""

import jax
import jax.numpy as jnp
import pytest

from mdeq_jax.models.deq_transformer.build import build_deq_transformer
from tests.helpers.language import load_reference, transformer_config

NAMES = (
    "post_norm_adaptive",
    "post_norm_plain",
    "pre_norm_adaptive",
    "post_norm_div1_local",
)
SINGLE = {
    "solver.forward.tol": 1e-7,
    "solver.backward.tol": 1e-7,
}


@pytest.fixture(scope="session")
def load(reference_dir):
    """Loads a model by its name, in float64 or as asked."""

    def make(name, dtype=jnp.float64, tol=1e-6, fields=()):
        folder = reference_dir / "deq_transformer"
        return load_reference(
            folder, name, transformer_config, build_deq_transformer, fields, dtype, tol
        )

    return make


@pytest.fixture(
    params=[
        *((name, "float64") for name in NAMES[:-1]),
        pytest.param((NAMES[-1], "float64"), marks=pytest.mark.slow),
        *(pytest.param((name, "float32"), marks=pytest.mark.slow) for name in NAMES),
    ],
    ids="-".join,
)
def reference(request, load):
    """One of the models, in float64 to 1e-6 or in float32 to 1e-4."""
    name, dtype = request.param
    if dtype == "float32":
        yield load(name, jnp.float32, 1e-4, SINGLE)
        return
    jax.config.update("jax_enable_x64", True)
    yield load(name)
    jax.config.update("jax_enable_x64", False)
