"""The examples run: a model in one file learns, and the notebooks do what they show."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE_FILE = EXAMPLES / "deq_in_one_file.py"


@pytest.fixture(scope="module")
def one_file():
    spec = importlib.util.spec_from_file_location("deq_in_one_file", ONE_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_file_learns_with_converged_solves(one_file, capsys):
    _, accuracy, residual = one_file.train(steps=60)
    assert accuracy > 0.8  # chance is 0.1
    assert residual < 1e-3
    assert "NFE" in capsys.readouterr().out


def test_its_gradient_is_that_of_the_equilibrium(one_file):
    """Compared with differentiating plain iteration, run to convergence."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    weight = one_file.contractive(jax.random.normal(jax.random.key(0), (6, 6)))
    x = jax.random.normal(jax.random.key(1), (3, 6))

    def implicit(weight, x):
        z = one_file.equilibrium(one_file.cell, weight, x, jnp.zeros_like(x))
        return jnp.sum(jnp.sin(z))

    def unrolled(weight, x):
        z = jax.lax.fori_loop(0, 200, lambda _, z: one_file.cell(weight, z, x), jnp.zeros_like(x))
        return jnp.sum(jnp.sin(z))

    actual, expected = (jax.grad(f, argnums=(0, 1))(weight, x) for f in (implicit, unrolled))
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_one_file_is_short_and_stands_alone():
    text = ONE_FILE.read_text()
    assert len(text.splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(text)))
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not [name for name in imported if name.startswith("mdeq_jax")]


@pytest.mark.parametrize("name", ["own_cell", "train_and_look"])
def test_notebooks_keep_their_outputs(name):
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_cell", "train_and_look"])
def test_notebooks_run(name):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    folder = {"metadata": {"path": str(EXAMPLES.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
