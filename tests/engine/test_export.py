"""Exported programs compute the same in a process that cannot import this package."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mdeq_jax.configs import camvid_tiny, digits, pydoc_transformer, repmlp_digits
from mdeq_jax.engine.export import export_program, export_workdir
from mdeq_jax.engine.state import variable_shapes
from mdeq_jax.engine.variables import save_variables
from mdeq_jax.models import build_model, deploy
from mdeq_jax.models.language import Segment
from mdeq_jax.tasks import build_task
from tests.helpers.tiny import SINGLE_SCALE, TINY, override

REFUSE = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("mdeq_jax", "flax", "configs"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from load import load

model = load()
"""
# Runs a folder on `inputs.npz`, whose arrays differ in their batch size.
ELSEWHERE = (
    REFUSE
    + """
for name, inputs in np.load("inputs.npz").items():
    np.savez(f"{name}.npz", **model(inputs))
assert not {"mdeq_jax", "flax"} & sys.modules.keys()
"""
)
# Three steps of a language model, whose memory is zeros at first.
STEPS = (
    REFUSE
    + """
import json
shapes = json.load(open("export.json"))["inputs"]["memory"]
memory = []
for text in shapes:
    kind, _, sides = text.partition("[")
    memory.append(np.zeros([2, *map(int, sides.rstrip("]").split(",")[1:])], kind))
memory = tuple(memory)
for tokens in np.load("tokens.npy").T:
    outputs = model({"tokens": tokens[:, None], "memory": memory})
    memory = outputs["memory"]
np.save("log_probs.npy", outputs["log_probs"])
assert not {"mdeq_jax", "flax"} & sys.modules.keys()
"""
)


def run_elsewhere(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def small(module, **fields):
    return override(module.get_config(), fields)


def classifier():
    return small(digits, **{**TINY, **SINGLE_SCALE})


def segmenter():
    return small(
        camvid_tiny,
        **{
            "model.channels": (8,),
            "model.num_blocks": (1,),
            "model.big_kernels": (0,),
            "model.num_groups": 4,
            "solver.forward.max_steps": 3,
            "data.image_size": (16, 16),
        },
    )


def initialised(config):
    model, inputs = build_model(config), build_task(config).example_inputs(config)
    return jax.device_get(jax.jit(model.init)(jax.random.key(0), inputs))


def deployed_repmlp():
    config = small(repmlp_digits, **{"model.channels": (8,), "model.num_blocks": (1,)})
    return deploy(initialised(config), config)


def export_of(case):
    """The config and the variables of a case."""
    if case == "repmlp":
        variables, config = deployed_repmlp()
    else:
        config = {"classifier": classifier, "segmenter": segmenter}[case]()
        variables = initialised(config)
    return config, variables


@pytest.mark.parametrize("case", ["classifier", "segmenter", "repmlp"])
def test_runs_where_this_package_is_missing(case, tmp_path):
    config, variables = export_of(case)
    save_variables(variables, config, tmp_path / "run")
    summary = export_workdir(config, tmp_path / "run", tmp_path / "out")
    assert "model.stablehlo: " in summary
    inputs = {}
    example = build_task(config).example_inputs(config)
    for size in (1, 3):
        key = jax.random.key(size)
        inputs[f"batch{size}"] = np.asarray(jax.random.normal(key, (size, *example.shape[1:])))
    np.savez(tmp_path / "out" / "inputs.npz", **inputs)
    run_elsewhere(ELSEWHERE, tmp_path / "out")
    model = build_model(config)
    for name, batch in inputs.items():
        expected = jax.jit(model.apply)(variables, batch)
        with np.load(tmp_path / "out" / f"{name}.npz") as actual:
            np.testing.assert_allclose(actual["logits"], expected.logits, atol=1e-5)
            if expected.solution is None:
                assert set(actual) == {"logits"}
            else:
                np.testing.assert_array_equal(actual["steps"], expected.solution.steps)
                assert actual["status"].shape == (len(batch),)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["inputs"].startswith("float32[batch,") and "batch" in facts["outputs"]["logits"]


def test_a_language_model_goes_on_step_by_step(tmp_path):
    sizes = {"d_embed": 16, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "mem_len": 4}
    fields = {f"model.transformer.{name}": size for name, size in sizes.items()}
    fields |= {"model.transformer.vocab_size": 11, "solver.forward.max_steps": 4}
    config = small(pydoc_transformer, **fields)
    variables, model = initialised(config), build_model(config)
    save_variables(variables, config, tmp_path / "run")
    as_released = config.copy_and_resolve_references()
    as_released.model.transformer.vocab_size = None  # which training reads from the data
    export_workdir(as_released, tmp_path / "run", tmp_path / "out")
    tokens = np.int32([[1, 2, 10], [0, 4, 4]])
    np.save(tmp_path / "out" / "tokens.npy", tokens)
    run_elsewhere(STEPS, tmp_path / "out")
    memory, step = model.empty_memory(2), jax.jit(model.apply)
    for column in tokens.T:
        outputs = step(variables, Segment(column[:, None], memory))
        memory = outputs.memory
    actual = np.load(tmp_path / "out" / "log_probs.npy")
    np.testing.assert_allclose(actual, outputs.logits.log_probs()[:, -1], atol=1e-5)
    np.testing.assert_allclose(np.exp(actual).sum(axis=1), 1, atol=1e-5)


def test_lowers_for_gpus_too():
    config = override(classifier().copy_and_resolve_references(), {"pallas": False})
    model = build_model(config)
    inputs, call = build_task(config).exported_call(model)
    program = export_program(
        call, variable_shapes(model, config), inputs, platforms=("cuda", "rocm")
    )
    assert program.platforms == ("cuda", "rocm")


def test_refusals(tmp_path):
    config = classifier()
    model = build_model(config)
    shapes, (inputs, call) = variable_shapes(model, config), build_task(config).exported_call(model)
    with pytest.raises(ValueError, match=r"platforms must be among .*got \['gpu'\]"):
        export_program(call, shapes, inputs, platforms=("gpu",))
    with pytest.raises(ValueError, match="Export each into a folder of its own"):
        export_program(call, shapes, inputs, platforms=("cpu", "cuda"))
    (tmp_path / "model.stablehlo").touch()
    with pytest.raises(ValueError, match="holds a program already"):
        export_workdir(config, tmp_path, tmp_path)
