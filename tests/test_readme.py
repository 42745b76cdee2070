"""The example in the README runs, and the files, configs and fields that it names exist."""

import importlib
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdeq_jax
from mdeq_jax.engine.state import variable_shapes
from mdeq_jax.models import build_model

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def number_of_parameters(config):
    shapes = variable_shapes(build_model(config), config)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_table_has_the_parameters_of_the_configs():
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ", README, re.MULTILINE)
    assert len(rows) >= 6
    for name, number in rows:
        if name != "digits":  # rounded
            module = importlib.import_module(f"configs.{name}")
            counted = f"Cost: {number} parameters" in module.__doc__
            assert counted or number == f"{number_of_parameters(module.get_config()):,}", name


def test_the_version_is_the_same_everywhere():
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {mdeq_jax.__version__}\n" in citation
    assert f"## {mdeq_jax.__version__}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_example_gives_the_gradient_of_the_equilibrium(capsys, x64):
    """Compared with differentiating plain iteration, run to convergence."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "'w'" in capsys.readouterr().out

    def unrolled_loss(params, x):
        z = jax.lax.fori_loop(0, 200, lambda _, z: names["cell"](params, z, x), jnp.zeros_like(x))
        return jnp.mean(z**2)

    params, x = names["params"], jnp.ones((4, 8))
    expected = jax.grad(unrolled_loss)(params, x)["w"]
    actual = jax.grad(names["loss"])(params, x)["w"]
    assert float(jnp.linalg.norm(expected)) > 1e-3
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"configs/\w+\.py|docs/\w+\.\w+|(?<=`)mdeq_jax/[\w./]+", README)))
)
def test_the_files_it_names_exist(path):
    assert (REPOSITORY / path).exists()


def test_it_is_short():
    assert len(README.splitlines()) <= 120
    (lines,) = re.findall(r"one_file.py\).*?(\d+) lines", README)
    example = REPOSITORY / "examples" / "deq_in_one_file.py"
    assert len(example.read_text().splitlines()) == int(lines)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_its_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()


@pytest.mark.parametrize("extras", sorted(set(re.findall(r'"(?:\.|mdeq_jax)\[(.*?)\]"', README))))
def test_the_extras_it_names_exist(extras):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"python \w+\.py .*--config=.*", README)))
)
def test_the_fields_of_its_commands_exist(command):
    (name,) = re.findall(r"--config=configs/(\w+)\.py", command)
    config = importlib.import_module(f"configs.{name}").get_config()
    for field in re.findall(r"--config\.([\w.]+)=", command):
        part = config
        for key in field.split("."):
            assert key in part, field
            part = part[key]
