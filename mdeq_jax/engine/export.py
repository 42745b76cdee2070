"""Programs that run without this package: StableHLO of a model, for any batch size."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from ml_collections import ConfigDict

from mdeq_jax import hardware
from mdeq_jax.engine.variables import load_variables
from mdeq_jax.engine.weights_file import WEIGHTS_FILE, write_weights
from mdeq_jax.engine.workdir import with_saved_fields
from mdeq_jax.models import build_model
from mdeq_jax.tasks import build_task

PROGRAM_FILE, LOADER_FILE, FACTS_FILE = "model.stablehlo", "load.py", "export.json"
# The only program here that others run without this package.
LOADER = '''"""Loads the exported model of this folder: it needs jax and safetensors alone.

from load import load
model = load()
outputs = model(inputs)  # a dict of arrays; export.json lists the shapes
"""

from pathlib import Path

from jax import export
from safetensors.numpy import load_file


def load(folder=Path(__file__).parent):
    program = export.deserialize((Path(folder) / "model.stablehlo").read_bytes())
    weights = load_file(Path(folder) / "model.safetensors")
    return lambda inputs: program.call(weights, inputs)
'''
# JAX's names of platforms -> those of `mdeq_jax.hardware`.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


def export_program(
    call: Callable[[dict, Any], dict],
    variables: dict,
    inputs: Any,
    *,
    platforms: Sequence[str] = ("cpu",),
) -> jax_export.Exported:
    """The evaluation of a model as StableHLO, with a symbolic batch size.

    Args:
        call: variables and inputs to a dict of arrays, of `Task.exported_call`.
        variables: of the model; only shapes and types matter.
        inputs: a pytree of arrays or shapes `[1, ...]`; the first axis becomes symbolic.
        platforms: "cpu", "cuda", "rocm" or "tpu", for which the program is lowered.

    Returns:
        The program: `(weights, inputs)` to the dict of `call`. `weights` is a flat dict of arrays,
        as a safetensors file holds them.

    Raises:
        ValueError: unknown platform, or platforms whose programs differ.
    """
    if unknown := set(platforms) - PLATFORMS.keys():
        raise ValueError(f"platforms must be among {sorted(PLATFORMS)}; got {sorted(unknown)}.")
    targets = {PLATFORMS[name] for name in platforms}
    if len(targets) != 1:
        raise ValueError(
            f"platforms={list(platforms)}: programs for CPUs, GPUs and TPUs differ. Export each "
            "into a folder of its own."
        )

    def program(weights, inputs):
        tree = unflatten_dict({tuple(name.split("/")): x for name, x in weights.items()})
        return call({name: {} for name in variables} | tree, inputs)

    (batch,) = jax_export.symbolic_shape("batch")
    leaves: dict[tuple[str, ...], Any] = flatten_dict(variables)
    weights = {
        "/".join(names): jax.ShapeDtypeStruct(x.shape, x.dtype) for names, x in leaves.items()
    }
    symbolic = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), inputs)
    with hardware.compiling_for(cast(hardware.Platform, targets.pop())):
        return jax_export.export(jax.jit(program), platforms=tuple(platforms))(weights, symbolic)


def export_workdir(
    config: ConfigDict,
    workdir: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "latest",
    platforms: Sequence[str] = ("cpu",),
) -> str:
    """Writes a trained model as a program, its weights and a loader of a few lines.

    Args:
        config: of the model.
        workdir: its work directory, or a folder of `mdeq_jax.pretrained.save`.
        output: made if missing.
        checkpoint: "latest", "best", or a step.
        platforms: see `export_program`.

    Returns:
        Lines on what was written.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not fit each other, or `output` holds a program already.
    """
    output = Path(output)
    if (output / PROGRAM_FILE).exists():
        raise ValueError(f"{output} holds a program already: choose another --output.")
    # Which kernels a program uses must not depend on a batch size that is not known yet.
    config = with_saved_fields(Path(workdir), config).copy_and_resolve_references()
    config.pallas = False
    model, task = build_model(config), build_task(config)
    variables, step = load_variables(config, workdir, checkpoint)
    inputs, call = task.exported_call(model)
    exported = export_program(call, variables, inputs, platforms=platforms)
    output.mkdir(parents=True, exist_ok=True)
    (output / PROGRAM_FILE).write_bytes(exported.serialize())
    (output / LOADER_FILE).write_text(LOADER)
    write_weights(output / WEIGHTS_FILE, jax.device_get(variables), step)
    symbolic = jax.tree.map(_described, inputs)
    shapes = jax.tree.unflatten(exported.out_tree, map(str, exported.out_avals))
    facts = {
        "name": config.name,
        "step": step,
        "platforms": list(platforms),
        "inputs": symbolic,
        "outputs": shapes,
    }
    (output / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    size = (output / PROGRAM_FILE).stat().st_size
    return "\n".join(
        (
            f"{workdir}, step {step:,}, to {output} for {', '.join(platforms)}",
            f"inputs: {symbolic}",
            *(f"{name}: {shape}" for name, shape in sorted(shapes.items())),
            f"{PROGRAM_FILE}: {size / 1e6:.1f} MB; {LOADER_FILE} runs it without this package",
        )
    )


def _described(x: Any) -> str:
    """The type and shape of an input, e.g. "float32[batch,8,8,3]"."""
    return f"{x.dtype}[{','.join(map(str, ('batch', *x.shape[1:])))}]"
